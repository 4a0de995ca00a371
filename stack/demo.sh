#!/bin/sh
# What `make demo` does: servers, set-up, producer, consumer, test_cdc.py; then stops what it started.
# $1: the Python of the virtual environment. Exits with test_cdc.py's status.
set -eu
python=$1
state=stack/.state
mkdir -p "$state"

ran_before=no
if "$python" stack/servers.py status >/dev/null 2>&1; then ran_before=yes; fi

pids=
clean_up() {
    status=$?
    trap - EXIT INT TERM
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do wait "$pid" 2>/dev/null || true; done
    for script in producer consumer; do
        [ -s "$state/demo-$script.log" ] && printf '\n%s.py said:\n' "$script" && cat "$state/demo-$script.log"
    done
    [ "$ran_before" = yes ] || "$python" stack/servers.py down || true
    exit "$status"
}
rm -f "$state/demo-producer.log" "$state/demo-consumer.log"
trap clean_up EXIT
trap 'exit 130' INT TERM

"$python" stack/servers.py up
"$python" db_setup.py
"$python" admin.py
for script in producer consumer; do
    "$python" $script.py >"$state/demo-$script.log" 2>&1 &
    pids="$pids $!"
done
tries=0
until grep -q "publishing from" "$state/demo-producer.log" && grep -q "assigned" "$state/demo-consumer.log"; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || break # test_cdc.py says what is wrong
    sleep 0.1
done
"$python" test_cdc.py
