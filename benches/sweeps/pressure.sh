#!/bin/sh
# A budget that shrinks while the model generates, and grows again: what each change costs,
# and that the text stays the same. Reads --metrics-file.
#
#   benches/sweeps/pressure.sh -m model.gguf -- -t 4 -n 600

. "$(dirname "$0")/setup.sh"

metrics=$folder/$name.jsonl
size=$folder/budget
measure_range
budgets=$(jq -nr --argjson low "$minimum_bytes" --argjson high "$model_bytes" --argjson n "$points" '
    ($n / 2 | ceil) as $half
    | [range($half) | $high * 1.2 - ($high * 1.2 - $low * 2) * . / ([$half - 1, 1] | max)]
    | . + (reverse | .[1:]) | map("\(floor)b") | .[]')

generate() {
    # shellcheck disable=SC2086 # flags are words
    exec "$program" $model_flags ${model:+"$model"} $small_flags -no-cnv --ignore-eos -s 1 --temp 0 \
        -c 1024 -n 400 -p "Once upon a time" --dynamic-layers --paged-kv "$@" 2>"$folder/$name.log"
}

set -- "$@"
first=$(printf '%s\n' "$budgets" | head -n 1)
printf '%s\n' "$first" >"$size"
(generate --vram-budget "$first" "$@" >"$folder/steady.txt")
rm -f "$metrics"
generate --vram-budget-file "$size" --metrics-file "$metrics" "$@" >"$folder/changing.txt" &
run=$!
trap 'kill "$run" 2>/dev/null || true' EXIT

# A change, when so many tokens were generated since the last one.
tokens() { grep -c '"type":"token"' "$metrics" 2>/dev/null || true; }
changes=$(printf '%s\n' "$budgets" | wc -l)
each=$((400 / (changes + 1)))
wanted=$each
for budget in $budgets; do
    while kill -0 "$run" 2>/dev/null; do
        seen=$(tokens)
        [ "${seen:-0}" -lt "$wanted" ] || break
        sleep 0.02
    done
    kill -0 "$run" 2>/dev/null || break
    printf '%s\n' "$budget" >"$size.part"
    mv "$size.part" "$size"
    kill -USR1 "$run" 2>/dev/null || break
    wanted=$((wanted + each))
done
wait "$run" || fail "the run failed: $(tail -n 1 "$folder/$name.log")"
trap - EXIT
cmp -s "$folder/steady.txt" "$folder/changing.txt" ||
    fail "the text differs from that of a steady budget; see $folder"

jq -s -r '
    def mib: . / 1048576 * 100 | round / 100;
    (map(select(.type == "plan")) | map(select(.reason == "start" or .reason == "budget"))) as $plans
    | "The text is the same as with a steady budget.\n",
      "| from token | budget, MiB | resident, MiB | streamed, MiB | tokens/s |",
      "|---:|---:|---:|---:|---:|",
      (range($plans | length) as $i | $plans[$i] as $plan
        | ($plans[$i + 1].generated_tokens // 1e9) as $end
        | map(select(.type == "token" and .generated_tokens > $plan.generated_tokens + 1
              and .generated_tokens <= $end) | .tokens_per_sec) as $speeds
        | "| \($plan.generated_tokens) | \($plan.budget_bytes | mib) | \($plan.resident_bytes | mib) "
          + "| \($plan.streamed_bytes | mib) "
          + "| \(if ($speeds | length) > 0 then $speeds | sort | .[length / 2 | floor] | round
                 else "-" end) |")
' "$metrics" >"$folder/$name.md"
plot "$metrics" '
    (map(select(.type == "token"))) as $tokens
    | ($tokens | map(.tokens_per_sec) | max) as $fastest
    | map(select(.type == "plan" and (.reason == "start" or .reason == "budget"))) as $plans
    | ($plans | map(.budget_bytes) | max) as $most
    | {title: "Decode while the budget changes", x: "generated tokens",
       y: "tokens per second", series: [
        {label: "tokens per second", points: [$tokens[] | [.generated_tokens, .tokens_per_sec]]},
        {label: "budget (top: \($most / 1048576 * 10 | round / 10) MiB)", step: true,
         points: ([$plans[] | [.generated_tokens, .budget_bytes / $most * $fastest]]
             + [[$tokens[-1].generated_tokens, $plans[-1].budget_bytes / $most * $fastest]])}]}'
finish "$metrics" "$folder/$name.svg"
