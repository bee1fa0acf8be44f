"""What the routers of a token-routed run follow: the patch's place in the image, or the image's super-class.

For each MoE layer, the mutual information of expert and place (or super-class) as a share of the entropy of the
expert: 1 where the place alone decides the expert, 0 where it says nothing.

    python benchmarks/what_experts_follow.py runs/demo/seed0/N8-L4-token-paper
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import mutual_info_score

import vimoe
from vimoe.analysis.analyze_run import finished_run, run_images
from vimoe.data.loaders import batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for path in parser.parse_args().runs:
        run, recipe = finished_run(path)
        splits, model = run_images(run, recipe), vimoe.load(run.model).eval()
        groups, labels = np.array(splits.super_classes or splits.class_names), list[int]()
        with torch.no_grad(), vimoe.record_routing(model) as record:
            for images, targets in batches(splits.val):
                model(images)
                labels += targets.tolist()
        print(f"\n{path}: {len(labels)} validation images\nblock  experts used  by place  by super-class")
        for block, chosen in record.expert_ids.items():
            experts = chosen[:, 0].numpy()
            tokens = len(experts) // len(labels)
            places, of = np.tile(np.arange(tokens), len(labels)), np.repeat(groups[labels], tokens)
            entropy = mutual_info_score(experts, experts)
            shares = [mutual_info_score(experts, what) / entropy for what in (places, of)]
            print(f"{block:5}  {np.exp(entropy):12.1f}  {shares[0]:8.2f}  {shares[1]:14.3f}")


if __name__ == "__main__":
    main()
