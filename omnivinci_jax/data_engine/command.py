"""`omnivinci data-engine`: its flags, and how it runs. Imports nothing heavy, since the command line imports it."""

import argparse
import asyncio
from pathlib import Path

from omnivinci_jax.errors import UserError


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags; settings are --config FILE and --config.key=value."""
    command.add_argument("--videos", type=Path, required=True, help="folder of videos, searched with its subfolders")
    command.add_argument("--out", type=Path, required=True, help="folder of results; the same command resumes")
    command.add_argument("--dry_run", action="store_true", help="read the videos and tell what asking the models costs")


def run(arguments: argparse.Namespace) -> int:
    """Runs the engine; returns 1 if a server was away for some rows."""
    try:
        from omnivinci_jax.data_engine import cost, engine, output, prompts, report, settings, store
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'omnivinci-jax[data-engine]'") from None
    from etils import epath
    from tqdm import tqdm

    from omnivinci_jax.settings import load_config
    from omnivinci_jax.train.claim import claim_workdir

    config = load_config(arguments.config_arguments, settings.EngineConfig)
    texts = prompts.read_prompts(config.prompts)
    videos, out = arguments.videos, arguments.out
    if not videos.is_dir():
        raise UserError(f"--videos {videos}: there is no such folder")
    out.mkdir(parents=True, exist_ok=True)

    async def make(results: store.Store) -> int:
        machine = engine.Engine(config, texts, results, out)
        try:
            if arguments.dry_run:
                print(await cost.estimate(machine, videos))
                return 0
            before, count = results.totals(), 0
            with output.Output(out, config, texts) as files, tqdm(desc="data-engine", unit=" videos") as bar:
                async for rows in machine.rows(videos):
                    for row in rows:
                        files.add(row)
                    count += 1
                    bar.update()
            if not count:
                raise UserError(f"--videos {videos}: there is no video in it")
            table = report.counts_table(files.counts, count)
            costs = cost.cost_table(config, results.totals(), before)
            report.write_report(out, table, costs, files.examples())
            print(f"{table}\n\n{costs}\n\n{out / 'report.html'}")
            if again := files.counts.again:
                print(f"{again} rows failed because a server was away; the same command asks again")
            return 1 if again else 0
        finally:
            await machine.close()

    with claim_workdir(epath.Path(out)):
        results = store.Store(out / "results.sqlite")
        try:
            return asyncio.run(make(results))
        finally:
            results.close()
