"""timm's own scripts with ViMoE among their models: `python -m vimoe.vit.timm_script train.py ... --model vimoe`."""

import runpy
import sys

import vimoe.vit.timm_entry  # noqa: F401  (registers the name)


def main() -> None:
    """Run a script as `python SCRIPT ...` would."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m vimoe.vit.timm_script SCRIPT ...")
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
