# What the two launchers share: COMMAND CONFIG [OPTION OF DEEPSPEED]... [-- [OPTION OF COMMAND]...]
# Without options of the command, it runs the configuration.
set -euo pipefail
command=$1 config=$2; shift 2
launcher=(); while [ "${1---}" != -- ]; do launcher+=("$1"); shift; done
[ $# -gt 1 ] || set -- -- --config "$config"
if ! type deepspeed > /dev/null 2>&1; then
    echo "demo-t2v: $command: needs DeepSpeed; run pip install 'demo-t2v[train,deepspeed]'" >&2
    exit 2
fi
exec deepspeed "${launcher[@]}" --no_local_rank --module demo_t2v "$command" "${@:2}"
