#!/bin/sh
# Speed over the budget, from the smallest that runs to the whole model, beside unpaged
# runs: where more memory stops to pay.
#
#   benches/sweeps/saturation.sh -m model.gguf -n 12 -- -t 4

. "$(dirname "$0")/setup.sh"

measure_range 64
budgets=$(budgets_between "$minimum_bytes" "$((model_bytes * 12 / 10 + minimum_bytes))")
bench --vram-budgets "$budgets" --stock -p 64 -n 16 -r 3 -o jsonl \
    --plot "$folder/$name.svg" --resume "$folder/$name.journal" "$@" >"$folder/$name.jsonl"
rm -f "$folder/$name.journal"

jq -s -r '
    def mib: . / 1048576 * 100 | round / 100;
    def two: if . == null then "-" else . * 100 | round / 100 | tostring end;
    (map(select(.median_ts != null)) | group_by([.n_prompt, .n_gen])[]) as $test
    | ($test[0] | if .n_gen == 0 then "prefill" else "decode" end) as $phase
    | ($test | map(select(.budget_bytes != null)) | sort_by(.budget_bytes)) as $paged
    | ($paged | map(.median_ts) | max) as $best
    | ($paged | map(select(.median_ts >= 0.95 * $best)) | .[0].budget_bytes) as $enough
    | "\n\($phase): within 5 % of its best from \($enough | mib) MiB on\n",
      "| budget, MiB | tokens/s | to stock | law |", "|---:|---:|---:|---:|",
      ($paged[] | "| \(.budget_bytes | mib) | \(.median_ts | two) | \(.ratio_to_stock | two) "
          + "| \(.law_ts | two) |")
' "$folder/$name.jsonl" >"$folder/$name.md"
finish "$folder/$name.jsonl" "$folder/$name.svg"
