"""Ledgers of tries and parts become one: nothing done is lost, nothing is counted twice."""

from hypothesis import given, settings
from hypothesis import strategies as st

from storage import Ledger

IDS = "abcde"
FAILS, KILLED = ValueError("cannot be read"), "killed"
# A round: into how many parts it is split, and what comes of each item in it.
ROUNDS = st.lists(
    st.tuples(
        st.integers(1, 3), st.fixed_dictionaries({id: st.sampled_from(["done", "failed", KILLED]) for id in IDS})
    ),
    max_size=5,
)


def rows(ledger):
    return {row["id"]: row for row in ledger.table().to_pylist()}


@settings(deadline=None)
@given(ROUNDS, st.booleans(), st.randoms(use_true_random=False))
def test_what_parts_and_tries_did_is_in_the_last_ledger(rounds, retry, random):
    """Parts in any number and order, each with the ledgers that it finds; a killed one leaves none of this try. The
    run that comes last keeps what is done, and tries the rest."""
    kept, tries, became = {}, dict.fromkeys(IDS, 0), {}
    for number, (parts, outcome) in enumerate(rounds):
        for part in random.sample(range(parts), parts):
            ledger, own = Ledger(*kept.values()), [id for id in IDS if ord(id) % parts == part]
            if any(outcome[id] == KILLED for id in own):
                continue
            for id in own:
                if became.get(id) == "done":
                    ledger.kept(id)
                elif became.get(id) == "failed" and not retry:
                    ledger.still(id)
                else:
                    ledger.done(id, number) if outcome[id] == "done" else ledger.failed(id, FAILS, number)
                    became[id], tries[id] = outcome[id], tries[id] + 1
            kept[part, parts] = ledger.table()
    last = Ledger(*kept.values())
    assert last.failed_before.keys() == {id for id in IDS if became.get(id) == "failed"}
    for id in IDS:
        last.still(id) if id in last.failed_before else last.kept(id)
    for id, row in rows(last).items():
        assert row["status"] == became.get(id, "done") and (row["error"] is None) == (row["status"] == "done")
        assert row["attempts"] == (tries[id] if id in became else 1)  # one that a killed part finished is done now
        assert (row["seconds"] is None) == (id not in became)


def test_what_is_done_outweighs_what_is_reused_and_both_what_failed():
    tables = []
    for say in ("failed", "reused", "done"):
        ledger = Ledger(*tables[:1])
        ledger.failed("x", FAILS) if say == "failed" else getattr(ledger, say)("x")
        tables.append(ledger.table())
    for count, status in ((1, "failed"), (2, "reused"), (3, "done")):
        for order in (tables[:count], tables[:count][::-1]):
            last = Ledger(*order)
            last.still("x")
            assert rows(last)["x"]["status"] == status, order
    assert rows(last)["x"]["attempts"] == 2 and last.failed_before == {}


def test_a_later_entry_of_an_item_is_what_counts():
    first = Ledger()
    first.failed("x", FAILS, 2.0)
    second = Ledger(first.table())
    second.still("x")
    assert rows(second) == rows(first)
    second.done("x", 1.0)
    assert rows(second)["x"]["attempts"] == 2 and second.counts()["done"] == 1
