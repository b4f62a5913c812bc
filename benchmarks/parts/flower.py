"""Flower's SecAgg+ (flwr), driven in-process through its own mod and workflow: `python flower.py
CLIENTS LENGTH RUNS`.

Runs in an interpreter that has flwr and numpy and nothing of ours. Prints one JSON object: CPU
milliseconds of a client and of the server, the median over its runs. The first loads code and
memory; where there are more it does not count.
"""

import copy
import json
import statistics
import sys
import time

import numpy as np


def main(n, length):
    """Run one aggregation."""
    import logging

    import flwr
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.common import (
        Code,
        FitIns,
        FitRes,
        Status,
        ndarrays_to_parameters,
        parameters_to_ndarrays,
    )
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
    from flwr.server.workflow.constant import Key as WorkflowKey
    from flwr.supercore.task_identity import TaskIdentity

    logging.disable(logging.CRITICAL)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    update = np.random.default_rng(0).uniform(-1, 1, length).astype(np.float32)

    class Proxy:
        def __init__(self, node_id):
            self.node_id = node_id

    class Strategy:
        result = None

        def configure_fit(self, _round, parameters, _manager):
            return [(Proxy(i), FitIns(parameters, {})) for i in range(1, n + 1)]

        def aggregate_fit(self, _round, results, _failures):
            self.result = results[0][1].parameters
            return self.result, {}

    class Manager:
        def num_available(self):
            return n

    class Grid:
        spent = inside = 0.0

        def __init__(self):
            self.contexts = {i: Context(1, i, {}, RecordDict(), {}) for i in range(1, n + 1)}

        def send_and_receive(self, messages, *, timeout=None):  # noqa: ARG002
            begun, replies = time.process_time(), []
            for message in messages:
                message.content = copy.deepcopy(
                    message.content
                )  # as sending it would: clients must not share one
                start = time.process_time()
                replies.append(
                    secaggplus_mod(message, self.contexts[message.metadata.dst_node_id], self.train)
                )
                self.spent += time.process_time() - start
            self.inside += time.process_time() - begun
            return replies

        def train(self, message, _context):
            result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), 1, {})
            return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

    grid, strategy = Grid(), Strategy()
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), None, strategy, Manager())
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    zero = ndarrays_to_parameters([np.zeros(length, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(zero, True)
    workflow = SecAggPlusWorkflow(
        num_shares=1.0, reconstruction_threshold=(n + 1) // 2 + 1, max_weight=1.0
    )
    start = time.process_time()
    workflow(grid, context)
    total = time.process_time() - start
    error = np.abs(parameters_to_ndarrays(strategy.result)[0] - update).max()
    assert error < 1e-3, f"flower's own result is off by {error}"
    return {
        "version": flwr.__version__,
        "client": 1000 * grid.spent / n,
        "server": 1000 * (total - grid.inside),
    }


if __name__ == "__main__":
    runs = [main(int(sys.argv[1]), int(sys.argv[2])) for _ in range(int(sys.argv[3]))]
    medians = {
        side: statistics.median(run[side] for run in runs[1:] or runs)
        for side in ("client", "server")
    }
    print(json.dumps({"version": runs[0]["version"], **medians}))
