"""Which videos lie in which file of frames: pure."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.extract_frames.shards import place, planned

VIDEOS = st.sets(st.text("abcdef", min_size=1, max_size=3), max_size=20)


def test_videos_come_in_order_of_digest():
    assert planned({}, [], ["c", "a", "d", "b", "e"], 2) == {
        "frames-00000.parquet": ["a", "b"],
        "frames-00001.parquet": ["c", "d"],
        "frames-00002.parquet": ["e"],
    }


def test_a_plan_holds_for_what_is_not_made():
    before = {"frames-00000.parquet": ["a", "b"], "frames-00001.parquet": ["c", "d"]}
    assert planned(before, ["frames-00000.parquet"], ["c", "d"], 1) == before


def test_what_failed_in_a_made_shard_comes_into_a_new_one():
    before = {"frames-00000.parquet": ["a", "b"], "frames-00001.parquet": ["c", "d"]}
    assert planned(before, ["frames-00000.parquet"], ["b", "c", "d"], 2) == {
        "frames-00000.parquet": ["a"],
        "frames-00001.parquet": ["c", "d"],
        "frames-00002.parquet": ["b"],
    }


def test_shards_of_a_published_artifact_keep_their_names():
    """Opened again for what failed: its plan is gone, its files are not."""
    assert planned({}, ["frames-00000.parquet", "frames-00002.parquet"], ["x"], 4) == {"frames-00001.parquet": ["x"]}


@settings(deadline=None)
@given(VIDEOS, st.data(), st.integers(1, 5), st.integers(1, 5))
def test_every_video_has_one_place_whatever_was_made_before(videos, data, size, other_size):
    before = planned({}, [], videos, size)
    made = data.draw(st.sets(st.sampled_from(sorted(before)))) if before else set()
    failed = {v for name in made for v in before[name] if data.draw(st.booleans())}
    todo = failed | {v for name, found in before.items() if name not in made for v in found}
    plan = planned(before, made, todo, other_size)
    assert sorted(v for found in plan.values() for v in found) == sorted(videos)
    for name in made:
        assert plan[name] == [v for v in before[name] if v not in failed]


def test_row_groups_follow_one_another_and_failed_videos_take_none():
    rows = {video: {"row_groups": groups} for video, groups in {"a": 3, "c": 1, "d": 2}.items()}
    place({"x.parquet": ["a", "b", "c"], "y.parquet": ["d"]}, rows)
    assert rows == {
        "a": {"row_groups": 3, "shard": "x.parquet", "first_row_group": 0},
        "c": {"row_groups": 1, "shard": "x.parquet", "first_row_group": 3},
        "d": {"row_groups": 2, "shard": "y.parquet", "first_row_group": 0},
    }


@settings(deadline=None)
@given(VIDEOS, st.data(), st.integers(1, 4))
def test_parts_that_begin_at_any_moment_make_one_plan(videos, data, size):
    """Of an artifact opened again for what failed, or of a new one: a part that looks at the shards, then at the
    videos, then at the plan, while another goes on, makes the plan that the other works by."""
    failed = {v for v in videos if data.draw(st.booleans())}
    old = planned({}, [], videos - failed, size)
    finished, made, plan = {v for found in old.values() for v in found}, set(old), {}
    history = [(set(made), set(finished), plan)]  # what there is: after each thing that comes to be
    plan = planned(plan, made, videos - finished, size)
    history.append((set(made), set(finished), plan))
    for video in data.draw(st.permutations(sorted(failed))):
        finished.add(video)
        history.append((set(made), set(finished), plan))
        made |= {name for name, found in plan.items() if finished.issuperset(found)}
        history.append((set(made), set(finished), plan))
    moments = st.integers(0, len(history) - 1)
    first, second, third = sorted(data.draw(st.tuples(moments, moments, moments)))
    seen = history[first][0], history[second][1], history[third][2]
    assert planned(seen[2], seen[0], videos - seen[1], size) == plan
