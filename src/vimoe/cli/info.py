"""`vimoe info`: what a model costs before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from vimoe.cli.arguments import Parser, at_least


def run(arguments: Sequence[str]) -> None:
    """Print the cost of a timm model, dense and upcycled."""
    parser = Parser("info", "Counts a timm model, dense and upcycled, without weights: nothing is downloaded.")
    parser.add_argument("model", help="name of a timm model, such as vit_small_patch14_dinov2")
    parser.add_argument("--image-size", type=at_least(1), help="pixels of a side (default: the model's own)")
    parser.add_argument("--num-classes", type=at_least(0), help="classes of the head (default: the model's own)")
    parser.add_argument("--num-experts", type=int, default=8, help="routed experts of each MoE layer")
    parser.add_argument("--last", type=int, help="how many of the last blocks become MoE layers (default: 2)")
    parser.add_argument("--layers", type=int, nargs="+", help="block numbers from 0, instead of --last")
    parser.add_argument("--top-k", type=int, default=1, help="experts chosen for each image or token")
    parser.add_argument("--routing", choices=("image", "token"), default="image", help="one choice an image or a token")
    parser.add_argument("--no-shared-expert", action="store_true", help="without an always-on expert")
    args = parser.parse_args(list(arguments))
    from vimoe.report.tables import cost_table
    from vimoe.vit.inspection import compare_costs

    print(
        cost_table(
            compare_costs(
                args.model,
                image_size=args.image_size,
                num_classes=args.num_classes,
                last=args.last,
                layers=args.layers,
                num_experts=args.num_experts,
                top_k=args.top_k,
                shared_expert=not args.no_shared_expert,
                routing=args.routing,
            )
        )
    )
