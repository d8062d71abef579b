"""Runs `omnivinci data-engine` over one folder of results."""

import argparse
import asyncio
import os
from pathlib import Path

from etils import epath
from tqdm import tqdm

from omnivinci_jax.data_engine.cost import cost_table, estimate
from omnivinci_jax.data_engine.engine import Engine
from omnivinci_jax.data_engine.implicit import convert
from omnivinci_jax.data_engine.output import Output
from omnivinci_jax.data_engine.prompts import read_prompts
from omnivinci_jax.data_engine.report import counts_table, write_report
from omnivinci_jax.data_engine.settings import EngineConfig
from omnivinci_jax.data_engine.store import Store
from omnivinci_jax.errors import UserError
from omnivinci_jax.settings import load_config
from omnivinci_jax.train.claim import claim_workdir


def run(arguments: argparse.Namespace) -> int:
    """Runs the engine, or converts questions; returns 1 if some rows failed for now, as when a server is away."""
    videos, out, questions = arguments.videos, arguments.out, arguments.questions
    if not videos.is_dir():
        raise UserError(f"--videos {videos}: there is no such folder")
    if out.resolve().is_relative_to(videos.resolve()):
        raise UserError(f"--out {out}: is inside --videos, so its clips would be taken for videos; give another folder")
    if questions and (arguments.unparsed or arguments.dry_run):
        raise UserError("--questions asks no model: leave out --config and --dry_run")
    config = None if questions else load_config(arguments.unparsed, EngineConfig)
    out.mkdir(parents=True, exist_ok=True)
    with claim_workdir(epath.Path(out)):
        store = Store(out / "results.sqlite")
        try:
            if config is None:
                print(convert(questions, videos, out, store, os.cpu_count() or 1))
                return 0
            return asyncio.run(_make(config, videos, out, store, arguments.dry_run))
        finally:
            store.close()


async def _make(config: EngineConfig, videos: Path, out: Path, store: Store, dry_run: bool) -> int:
    prompts = read_prompts(config.prompts)
    engine = Engine(config, prompts, store, out)
    try:
        if dry_run:
            print(await estimate(engine, videos))
            return 0
        before, count = store.totals(), 0
        with Output(out, config, prompts) as output, tqdm(desc="data-engine", unit=" videos") as bar:
            async for rows in engine.rows(videos):
                for row in rows:
                    output.add(row)
                count += 1
                bar.update()
            if not count:
                raise UserError(f"--videos {videos}: there is no video in it")
    finally:
        await engine.close()
    table, costs = counts_table(output.counts, count), cost_table(config, store.totals(), before)
    write_report(out, table, costs, output.examples())
    print(f"{table}\n\n{costs}\n\n{out / 'report.html'}")
    if again := output.counts.again:
        print(f"{again} rows failed for now ({out / 'errors.jsonl'} says why); the same command tries them again")
    return 1 if again else 0
