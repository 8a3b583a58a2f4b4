"""The queue on a Ray cluster of two nodes on this machine: same results, and the loss of a node survived."""

import logging
import threading
import time
from functools import partial

import isdt_eval_toys
import pytest
import ray
import ray.cluster_utils as cluster_utils
from isdt_eval_toys import Chaos, NoisyPolicy, SlowChaos, evaluate

from isdt_policy.eval.protocol import Protocol

pytestmark = pytest.mark.slow

SEEDS = list(range(100_000, 100_012))


@pytest.fixture
def cluster():
    ray.cloudpickle.register_pickle_by_value(isdt_eval_toys)
    two = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False},
    )
    second = two.add_node(num_cpus=1, object_store_memory=80_000_000)
    two.wait_for_nodes()
    ray.init(address=two.address, log_to_driver=False, logging_level=logging.ERROR)
    yield two, second
    ray.shutdown()
    two.shutdown()


def test_two_nodes_give_the_same_results_and_one_may_die(cluster):
    from isdt_policy.eval.ray_backend import RaySlots

    two, second = cluster
    reference = evaluate(NoisyPolicy(), Protocol("chaos"), SEEDS, [1, 2], make_env=Chaos).episodes
    run = partial(evaluate, NoisyPolicy(), Protocol("chaos"), SEEDS, [1, 2], n_envs=4)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    assert run(make_env=Chaos, backend=partial(RaySlots, timeout_s=60)).episodes == reference

    done = []
    killer = threading.Thread(target=_kill_after, args=(two, second, done), daemon=True)
    killer.start()
    result = run(
        make_env=SlowChaos, backend=partial(RaySlots, timeout_s=60), listener=lambda record, n, total: done.append(n)
    )
    killer.join()
    # The cluster learns of a death by missed heartbeats, perhaps after the evaluation is over.
    deadline = time.monotonic() + 60
    while len([node for node in ray.nodes() if node["Alive"]]) > 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 1
    assert result.episodes == reference


def _kill_after(cluster, node, done):
    while len(done) < 3:
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
