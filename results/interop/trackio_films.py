"""Numbers and films of a run, as trackio keeps them: pip install '.[trackio,report]', then run this file."""

import os
import sqlite3
import tempfile
from pathlib import Path

import numpy as np

with tempfile.TemporaryDirectory() as folder:
    os.environ["TRACKIO_DIR"] = f"{folder}/trackio"
    import trackio

    from isdt_policy.eval.film import write_mp4
    from isdt_policy.training.loggers import Log

    film = Path(folder) / "film.mp4"
    write_mp4(film, [np.full((64, 64, 3), 20 * i, np.uint8) for i in range(8)], 10)
    log = Log(Path(folder), 0, ["trackio"])
    log.write(4, {"loss": 0.5})
    log.write(2, {"rollout_success": 0.5, "rollout_0": film})  # of an earlier step, ended later
    log.close()
    rows = sqlite3.connect(f"{folder}/trackio/isdt-policy.db").execute("select step, metrics from metrics").fetchall()
    films = list(Path(folder, "trackio/media").rglob("*.mp4"))
    assert [step for step, _ in rows] == [4, 2]
    assert b"loss" in rows[0][1]
    assert b"rollout_success" in rows[1][1]
    assert [kept.read_bytes() for kept in films] == [film.read_bytes()]
    print(f"trackio {trackio.__version__}: {len(rows)} records, {len(films)} film")
