"""From a checkpoint to a controller: runtime, safety limits, export, server and client.

| module | what | needs |
|---|---|---|
| `runtime` | history, chunk schedule, ensembling, asynchronous inference | NumPy |
| `safety` | limits of the commands, faults, watchdog | NumPy (ruckig for acceleration and jerk) |
| `runner` | an exported ONNX policy | NumPy, onnxruntime |
| `wire`, `client` | a policy behind a websocket, like any other | NumPy, msgpack, websockets |
| `server`, `session`, `fair_share` | the server, one client's questions, its share of the time | the same |
| `loading` | what acts, and the limits that come with it | what is loaded |
| `controller`, `clock`, `latency`, `report`, `window`, `table` | a policy drives a simulator | the task's simulator |
| `freezing`, `export`, `hub` | what is done to a trained policy | torch |

The first four rows import neither torch nor a simulator nor training code: they are what a robot's computer runs.
"""
