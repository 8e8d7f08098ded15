#!/bin/sh
# A budget that shrinks while the model generates, and grows again: what each change costs,
# and that the text stays the same. Reads --metrics-file.
#
#   benches/sweeps/pressure.sh -m model.gguf -- -t 4 -n 600

. "$(dirname "$0")/setup.sh"

metrics=$folder/$name.jsonl
size=$folder/budget

generate() {
    # shellcheck disable=SC2086 # flags are words
    exec "$program" $model_flags ${model:+"$model"} $small_flags -no-cnv --ignore-eos -s 1 --temp 0 \
        -c 1024 -n 400 -p "Once upon a time" --dynamic-layers --paged-kv "$@" 2>"$folder/$name.log"
}

# A run with a steady budget says what the text is, and which budgets do for all of it.
(generate --vram-budget 150% --metrics-file "$folder/steady.jsonl" "$@" >"$folder/steady.txt") ||
    fail "the model does not run: $(tail -n 1 "$folder/$name.log")"
budgets=$(jq -s -r --argjson n "$points" '
    map(select(.type == "plan" or .type == "token")) | (map(.minimum_bytes // 0) | max * 1.1) as $low
    | ([map(.model_bytes // 0) | max, $low] | max * 1.2) as $high
    | ($n / 2 | ceil) as $half
    | [range($half) | $high - ($high - $low) * . / ([$half - 1, 1] | max)]
    | . + (reverse | .[1:]) | map("\(floor)b") | .[]' "$folder/steady.jsonl")
printf '%s\n' "$budgets" | head -n 1 >"$size"
rm -f "$metrics"
generate --vram-budget-file "$size" --metrics-file "$metrics" "$@" >"$folder/changing.txt" &
run=$!
trap 'kill "$run" 2>/dev/null || true' EXIT

# A change, when so many tokens were generated since the last one.
tokens() { grep -c '"type":"token"' "$metrics" 2>/dev/null || true; }
changes=$(printf '%s\n' "$budgets" | wc -l)
each=$((400 / (changes + 1)))
wanted=$each
for budget in $(printf "%s\n" "$budgets" | tail -n +2); do
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
        | ($plans[$i + 1].generated_tokens // 1e9) as $until
        | map(select(.type == "token" and .generated_tokens > $plan.generated_tokens + 1
              and .generated_tokens <= $until) | .tokens_per_sec) as $speeds
        | "| \($plan.generated_tokens) | \($plan.budget_bytes | mib) | \($plan.resident_bytes | mib) "
          + "| \($plan.streamed_bytes | mib) "
          + "| \(if ($speeds | length) > 0 then $speeds | sort | .[length / 2 | floor] | round
                 else "-" end) |")
' "$metrics" >"$folder/$name.md"
plot "$metrics" '
    (map(select(.type == "token"))) as $tokens
    | ($tokens | map(.tokens_per_sec) | sort | .[length * 0.95 | floor]) as $fastest
    | map(select(.type == "plan" and (.reason == "start" or .reason == "budget"))) as $plans
    | ($plans | map(.budget_bytes) | max) as $most
    | {title: "Decode while the budget changes", x: "generated tokens",
       y: "tokens per second", series: [
        {label: "tokens per second (median of 9)", points: [range($tokens | length) as $i
            | [$tokens[$i].generated_tokens,
               ($tokens[([$i - 4, 0] | max):$i + 5] | map(.tokens_per_sec) | sort
                   | .[length / 2 | floor])]]},
        {label: "budget (top: \($most / 1048576 * 10 | round / 10) MiB)", step: true,
         points: ([$plans[] | [.generated_tokens, .budget_bytes / $most * $fastest]]
             + [[$tokens[-1].generated_tokens, $plans[-1].budget_bytes / $most * $fastest]])}]}'
finish "$metrics" "$folder/$name.svg"
