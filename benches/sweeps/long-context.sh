#!/bin/sh
# Decode over the length of the context, with the KV cache paged within a budget of half of
# the model and twice the smallest, and unpaged: what a long context costs.
#
#   benches/sweeps/long-context.sh -m model.gguf -n 6 -- -t 4 -ctk q8_0 -ctv q8_0

. "$(dirname "$0")/setup.sh"

# Each depth is twice the one before.
if [ -n "$model" ]; then first=512; else first=32; fi
depths=$(jq -nr --argjson n "$points" --argjson first "$first" \
    '[0, (range($n - 1) | $first * pow(2; .) | floor)] | map(tostring) | join(",")')
deepest=${depths##*,}
bench --vram-budgets 400% -p 0 -n 1 -d "$deepest" -r 1 --no-warmup -o jsonl >"$folder/range.jsonl"
budgets=$(jq -s -r 'max_by(.minimum_bytes) | [.minimum_bytes * 1.1, .minimum_bytes * 2 + .model_size / 2]
    | map("\(floor)b") | join(",")' "$folder/range.jsonl")
bench --vram-budgets "$budgets" --stock -p 0 -n 16 -d "$depths" -r 3 -o jsonl \
    --resume "$folder/$name.journal" "$@" >"$folder/$name.jsonl"
rm -f "$folder/$name.journal"

series='
    def mib: . / 1048576 * 10 | round / 10;
    map(select(.median_ts != null)) | group_by(.budget_bytes)
    | map({label: (if .[0].budget_bytes == null then "stock" else
               "paged, \(.[0].budget_bytes | mib) MiB" end),
           points: (sort_by(.n_depth) | map([.n_depth, .median_ts]))})'
jq -s -r "$series"'
    | ["| tokens in the context |" + (map(" \(.label) |") | join("")),
       "|---:|" + (map("---:|") | join(""))]
      + (. as $all | [.[].points[][0]] | unique | map(. as $depth
          | "| \($depth) |" + ($all | map([.points[] | select(.[0] == $depth)[1]]
              | if length == 0 then " - |" else " \(.[0] * 10 | round / 10) |" end) | join(""))))
    | .[]' "$folder/$name.jsonl" >"$folder/$name.md"
plot "$folder/$name.jsonl" "$series | {title: \"Decode over the length of the context\",
    x: \"tokens in the context\", y: \"tokens per second\", series: .}"
finish "$folder/$name.jsonl" "$folder/$name.svg"
