#!/bin/sh
# The efficiency curve: which share of unpaged speed, and of what the law allows, a share of
# the model's memory gives.
#
#   benches/sweeps/efficiency.sh -m model.gguf -n 10 -- -t 4 -lm dio

. "$(dirname "$0")/setup.sh"

measure_range 64
budgets=$(budgets_between "$minimum_bytes" "$((model_bytes * 12 / 10 + minimum_bytes))")
bench --vram-budgets "$budgets" --stock -p 64 -n 16 -r 3 --repack 0 -o jsonl \
    --resume "$folder/$name.journal" "$@" >"$folder/$name.jsonl"
rm -f "$folder/$name.journal"

shares='
    def percent: . * 1000 | round / 10;
    map(select(.ratio_to_stock != null)) | sort_by([.n_gen, .budget_bytes])
    | map({phase: (if .n_gen == 0 then "prefill" else "decode" end),
           memory: (.budget_bytes / .model_size | percent),
           stock: (.ratio_to_stock | percent),
           law: (.median_ts / .law_ts | percent)})'
jq -s -r "$shares"'
    | ["| phase | memory, % of the model | speed, % of stock | speed, % of the law |",
       "|---|---:|---:|---:|"]
      + map("| \(.phase) | \(.memory) | \(.stock) | \(.law) |") | .[]
' "$folder/$name.jsonl" >"$folder/$name.md"
plot "$folder/$name.jsonl" "$shares | . as \$all
    | {title: \"Efficiency: speed over memory\", x: \"memory, % of the model\",
       y: \"speed, % of stock or of the law\",
       series: [(\"prefill\", \"decode\") as \$phase | (\"stock\", \"law\") as \$of
        | {label: \"\(\$phase), % of \(\$of)\",
           points: [\$all[] | select(.phase == \$phase) | [.memory, .[\$of]]]}]}"
finish "$folder/$name.jsonl" "$folder/$name.svg"
