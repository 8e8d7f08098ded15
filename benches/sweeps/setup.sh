# Read by the other scripts here: arguments, tools, where results go.
#
#   -m MODEL    a GGUF file (default: the demo model)
#   -o FOLDER   where table, records and plot go (default: target/sweeps/NAME)
#   -n POINTS   how many budgets or depths (default: 8)
#   -- FLAGS    more flags for the runs, as -t 4 -r 5
#
# RPAGED_CLI names the program (default: target/release/rpaged-cli of this repository).
set -eu

name=$(basename "$0" .sh)
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
top=$(CDPATH='' cd "$here/../.." && pwd)
program=${RPAGED_CLI:-$top/target/release/rpaged-cli}
model=
folder=$top/target/sweeps/$name
points=8

fail() {
    printf '%s: %s\n' "$name" "$*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
        -m | -o | -n)
            [ $# -ge 2 ] || fail "'$1' needs a value"
            case $1 in
                -m) model=$2 ;;
                -o) folder=$2 ;;
                -n) points=$2 ;;
            esac
            shift 2
            ;;
        --)
            shift
            break
            ;;
        -h | --help)
            # What stands at the head of the script and of this file.
            sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
            sed -n '3,/^set/s/^# \{0,1\}//p' "$here/setup.sh"
            exit 0
            ;;
        *) fail "unknown argument '$1'; see $name.sh --help" ;;
    esac
done

case $points in
    '' | *[!0-9]* | 0 | 1) fail "'-n' must be a number from 2 on, got '$points'" ;;
esac
command -v jq >/dev/null || fail "jq is needed; on Debian: apt install jq"
[ -x "$program" ] || fail "'$program' is not there; build it with cargo build --release"
[ -z "$model" ] || [ -r "$model" ] || fail "the model '$model' cannot be read"
mkdir -p "$folder" || fail "cannot make the folder '$folder'"

# The model as flags of the program, and what makes runs on so small a one bearable.
if [ -n "$model" ]; then
    model_flags="-m"
    small_flags=
else
    model_flags="--demo"
    small_flags="-t 1 -ub 16"
fi

# rpaged-cli bench on the model; what it says about its runs goes where it always goes.
bench() {
    # shellcheck disable=SC2086 # flags are words
    "$program" bench $model_flags ${model:+"$model"} $small_flags "$@"
}

# The model's size and the smallest budget that does, in bytes, by a run of one token.
measure_range() {
    bench --vram-budgets 200% -p "${1:-0}" -n 1 -r 1 --no-warmup -o jsonl >"$folder/range.jsonl" ||
        fail "the model does not run"
    model_bytes=$(jq -s '.[0].model_size' "$folder/range.jsonl")
    minimum_bytes=$(jq -s 'map(.minimum_bytes) | max' "$folder/range.jsonl")
}

# Budgets in bytes, evenly from $1 to $2.
budgets_between() {
    jq -nr --argjson from "$1" --argjson to "$2" --argjson n "$points" \
        '[range($n) | "\($from + ($to - $from) * . / ($n - 1) | floor)b"] | join(",")'
}

# A picture of what jq's filter $2 makes of the records in $1: see plot.jq.
plot() {
    jq -s -r -L "$here" "include \"plot\"; $2 | picture" "$1" >"$folder/$name.svg"
}

# The end: the table, and where everything is.
finish() {
    cat "$folder/$name.md"
    printf '\nrecords: %s\nplot:    %s\n' "$1" "$2"
}
