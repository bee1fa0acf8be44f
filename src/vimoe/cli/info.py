"""`vimoe info`: what a model costs before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from vimoe.cli.arguments import Parser, at_least


def run(arguments: Sequence[str]) -> None:
    """Print the cost of a timm model, dense and upcycled."""
    parser = Parser("info", "Nothing is downloaded.")
    parser.value("model", "name of a timm model, such as vit_small_patch14_dinov2")
    parser.group("model")
    parser.flag("--image-size", "pixels of an image's side (default: the model's own)", type=at_least(1))
    parser.flag("--num-classes", "classes of the head (default: the model's own)", type=at_least(0))
    parser.group("MoE")
    parser.flag("--num-experts", "routed experts of each MoE layer", 8, type=int)
    parser.flag("--last", "how many of the last blocks become MoE layers (default: 2)", type=int)
    parser.flag("--layers", "block numbers from 0, instead of --last", type=int, nargs="+")
    parser.flag("--top-k", "experts chosen for each image or token", 1, type=int)
    parser.flag("--shared-expert", "add an always-on expert", True)
    parser.flag("--routing", "one choice for each image or for each token", "image", choices=("image", "token"))
    args = parser.parse(arguments)
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
                shared_expert=args.shared_expert,
                routing=args.routing,
            )
        )
    )
