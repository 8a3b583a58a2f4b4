"""From a checkpoint to a controller: runtime, safety limits, export, server and client.

| module | what | needs |
|---|---|---|
| `runtime` | history, chunk schedule, ensembling, asynchronous inference | NumPy |
| `safety` | limits of the commands, faults, watchdog | NumPy (ruckig for acceleration and jerk) |
| `runner` | an exported ONNX policy | NumPy, onnxruntime |
| `wire`, `client`, `server` | policies over websockets | msgpack, websockets |
| `freezing`, `export`, `hub` | what is done to a trained policy | torch |
| `controller`, `window`, `table`, `command` | `isdt deploy`, `isdt serve`, `isdt export` | the task's simulator |

The first four rows import neither torch nor training code: they are what a robot's computer runs.
"""
