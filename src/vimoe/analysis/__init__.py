"""From routing counts to what each MoE layer is worth: counts, specialisation, plan."""
