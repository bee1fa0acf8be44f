#!/usr/bin/env bash
# From a folder of images to a pruned model and the evidence for it, unattended; then the same from a table of labels.
#
#   examples/first_hour.sh IMAGES CHECKPOINT [OUTPUT]
#
# IMAGES holds train/CLASS, val/CLASS and test/CLASS; CHECKPOINT is a model folder, such as a pretrained ViT's.
# EPOCHS, SIZE and PER_CLASS (images of each class that are trained on) make it shorter or longer. What has run is not
# repeated: the same command goes on where it was stopped.
set -euo pipefail
images=$1 checkpoint=$2 output=${3:-runs/first_hour}
start=(--initial-checkpoint "$checkpoint" --epochs "${EPOCHS:-4}" --img-size "${SIZE:-96}" --per-class "${PER_CLASS:-60}")
vimoe() { "${PYTHON:-python}" -m vimoe "$@"; }
say() { printf '\n== %s\n' "$*"; }

say "1. fine-tune the dense model: the control"
vimoe train --data-dir "$images" "${start[@]}" --output "$output/dense"

say "2. the same with MoE layers in the last two blocks"
vimoe train --data-dir "$images" "${start[@]}" --last 2 --num-experts 4 --output "$output/moe"

say "3. what is confused, and the worst mistakes"
vimoe evaluate "$output/moe"

say "4. both on the same images"
vimoe compare "$output/dense" "$output/moe"

say "5. which layers specialise, and which to keep"
vimoe analyze "$output/moe"

say "6. prune, recover, and compare with the dense control"
vimoe prune "$output/moe"

say "7. the same images by a table of labels"
table=$output/labels.csv
{
    echo "path,label,split"
    for split in train val test; do
        find "$(cd "$images" && pwd)/$split" -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' \) |
            sort | awk -F/ -v split_name="$split" '{ print "\"" $0 "\"," $(NF - 1) "," split_name }'
    done
} >"$table"
vimoe train --data-dir "$table" "${start[@]}" --epochs 1 --output "$output/table"
vimoe evaluate "$output/table"
vimoe predict "$output/table" "$(sed -n '2s/^"\(.*\)",.*/\1/p' "$table")"

say "reports: $output/moe/report.html and $output/moe-pruned/report.html"
