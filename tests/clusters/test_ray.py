"""Parts of a stage on a Ray cluster of two nodes, one of which is killed in the middle."""

import threading
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from tests.clusters.conftest import Films, part_runs, stage_below, wait_for

PORT = 4351  # of the head, for clients


@pytest.fixture
def cluster(films, monkeypatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node | {"ray_client_server_port": PORT})
    made.add_node(**node)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_node_dies_and_the_frames_are_the_same(cluster: Cluster, films: Films, undisturbed):
    (node,) = cluster.worker_nodes
    raylet = node.all_processes["raylet"][0].process.pid

    def kill() -> None:
        wait_for(lambda: stage_below(raylet))
        cluster.remove_node(node, allow_graceful=False)  # SIGKILL to all of its processes

    killer = threading.Thread(target=kill)
    killer.start()
    before = part_runs()
    assert films.run("ray", f"runner.cluster=ray://127.0.0.1:{PORT}") == undisturbed
    killer.join()
    assert part_runs() - before == {"Completed": 4}  # Ray has run the lost one again, on the other node
