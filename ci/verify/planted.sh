#!/usr/bin/env bash
# Do the checks find what they are for? Plants one defect at a time (rust/melissa-core/src/planted.rs) and demands that
# each check which is to find it fails, with the words that say so.
#   ci/verify/planted.sh [CHECKER...]    of: loom shuttle laws session; without one: all
# Cost on two cores: half a minute, and the builds of four test programs, a minute each.
set -euo pipefail
cd "$(dirname "$0")/../.."

# DEFECT CHECKER TEST (-: all of them) WORDS (an extended regular expression on the output)
table='
weak-unpin           loom     buffers::a_slot_is_not_written_before_its_reader_is_done                Causality violation
weak-unpin           loom     pieces::a_slot_is_freed_once_and_after_its_last_reader                  Causality violation
weak-publish         loom     buffers::writers_that_wait_for_room_all_get_it                          Causality violation
weak-notify          loom     pieces::a_waiter_hears_of_every_change                                  deadlock
weak-want            loom     buffers::a_slot_is_not_written_before_its_reader_is_done                deadlock
pin-dropped-early    loom     buffers::a_slot_is_not_written_before_its_reader_is_done                Causality violation
pin-unchecked        loom     pieces::a_slot_is_freed_once_and_after_its_last_reader                  panicked
signal-under-pin     loom     buffers::a_slot_is_not_written_before_its_reader_is_done                deadlock
seen-lost            loom     buffers::the_unseen_one_of_two_stays                                    deadlock
seen-wakes-nobody    loom     buffers::the_unseen_one_of_two_stays                                    deadlock
publish-wakes-nobody loom     buffers::a_fifo_hands_each_sample_to_one_sampler                        deadlock
no-second-look       loom     buffers::a_fifo_hands_each_sample_to_one_sampler                        deadlock
check-under-lock     loom     pieces::two_who_wake_each_other_from_their_conditions_both_get_on       deadlock
victim-unseen        loom     buffers::the_unseen_one_of_two_stays                                    never delivered
ticket-twice         loom     buffers::two_samplers_share_the_drain_without_a_repeat                  panicked
published-unwritten  loom     buffers::a_slot_is_not_written_before_its_reader_is_done                identity of one sample
close-beside-publish loom     buffers::what_is_published_beside_the_end_of_reception_is_delivered     panicked
freed-under-pin      loom     buffers::a_slot_is_not_written_before_its_reader_is_done                Causality violation
pin-dropped-early    shuttle  schedules::a_reservoir_loses_no_sample                                  PINS > 0|whole|identity
pin-unchecked        shuttle  schedules::a_reservoir_loses_no_sample                                  panicked
signal-under-pin     shuttle  schedules::a_firo_passes_every_sample_once                              deadlock
seen-lost            shuttle  schedules::a_reservoir_loses_no_sample                                  panicked
publish-wakes-nobody shuttle  schedules::batches_of_a_fifo_are_gathered_ahead_without_a_loss          deadlock
no-second-look       shuttle  schedules::a_fifo_passes_every_sample_once                              deadlock
check-under-lock     shuttle  schedules::a_fifo_passes_every_sample_once                              deadlock
victim-unseen        shuttle  schedules::a_reservoir_loses_no_sample                                  never delivered
ticket-twice         shuttle  schedules::a_reservoir_loses_no_sample                                  panicked
published-unwritten  shuttle  schedules::batches_of_a_fifo_are_gathered_ahead_without_a_loss          came again|never delivered
freed-under-pin      shuttle  schedules::a_reservoir_loses_no_sample                                  PINS > 0|whole|identity
seen-lost            laws     -                                                                       panicked
seen-wakes-nobody    laws     -                                                                       panicked
pin-dropped-early    laws     -                                                                       panicked
victim-unseen        laws     -                                                                       panicked
ticket-twice         laws     -                                                                       panicked
published-unwritten  laws     -                                                                       panicked
final-unconfirmed    session  schedules::whatever_clients_do_nothing_is_lost_and_nothing_comes_twice     it is finished already
final-unconfirmed    session  several_ranks::a_finished_simulation_that_is_opened_again_for_other_parameters_sends_all_of_its_steps_anew  reception_over
over-unconfirmed     session  several_ranks::a_finished_simulation_that_is_opened_again_for_other_parameters_sends_all_of_its_steps_anew  panicked
reopened-complete    session  schedules::whatever_clients_do_nothing_is_lost_and_nothing_comes_twice     is lost
reopened-complete    session  several_ranks::a_finished_simulation_that_is_opened_again_for_other_parameters_sends_all_of_its_steps_anew  of other parameters
'

checkers=${*:-loom shuttle laws session}
log=$PWD/target/planted.log
mkdir -p target
missed=0
rows=0

# The test program of a checker, built with the defects.
build() {
    local target=(--lib)
    if [[ $1 == laws ]]; then
        target=(--test buffer_laws)
    elif [[ $1 == session ]]; then
        target=(--test session)
    else
        local -x RUSTFLAGS="--cfg $1" CARGO_TARGET_DIR=$PWD/target/$1
    fi
    cargo test --locked --package melissa-core --features planted "${target[@]}" --no-run --message-format json 2>"$log" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' || { cat "$log" >&2; return 1; }
}

for checker in $checkers; do
    program=$(build "$checker")
    while read -r defect row_checker test words; do
        [[ $row_checker == "$checker" ]] || continue
        rows=$((rows + 1))
        status=0
        only=(--exact "models::$test")
        [[ $checker == session ]] && only=(--exact "$test")
        [[ $test == - ]] && only=()
        # A crash's core dump is of no use here.
        (ulimit -c 0; MELISSA_PLANTED=$defect timeout 120 "$program" "${only[@]}" >"$log" 2>&1) 2>/dev/null || status=$?
        if [[ $status == 0 || $status == 124 ]] || ! grep -Eq "$words" "$log" || grep -q "names no defect" "$log"; then
            printf '%-22s NOT FOUND by %s %s (status %s; "%s" was expected)\n' "$defect" "$checker" "$test" "$status" "$words"
            missed=$((missed + 1))
        else
            printf '%-22s found by %s %s\n' "$defect" "$checker" "$test"
        fi
    done <<<"$table"
done

# A row that names a test or a defect that is not there fails above; a defect without a row fails here.
for defect in $(sed -n 's/^    [A-Za-z]* = "\(.*\)",$/\1/p' rust/melissa-core/src/planted.rs); do
    grep -q "^$defect " <<<"$table" || { echo "no check is to find $defect"; missed=$((missed + 1)); }
done
echo "$((rows - missed)) of $rows found"
exit $((missed > 0 || rows == 0))
