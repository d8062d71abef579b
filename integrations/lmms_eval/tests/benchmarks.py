"""Small data sets in the published layouts of the benchmarks: the same columns and files, from `av_world` clips."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile
from datasets import Audio, Dataset, Image, disable_progress_bars

disable_progress_bars()
RATE = 16000


class Item(NamedTuple):
    """A question about a clip; `index` is that of the right option."""

    text: str
    options: list[str]
    index: int
    clip: Path
    image: Path
    sound: Path

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return "ABCDEFGH"[self.index]

    @property
    def lettered(self) -> list[str]:
        """The options with letters, as in "A. red"."""
        return [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", self.options, strict=False)]


class Asked(NamedTuple):
    """What a question is about, in the order of the prompt, and what is right: options and a letter, or texts."""

    media: list[Path]
    right: str | list[str]
    options: list[str]


class Benchmark(NamedTuple):
    """lmms-eval's task and score, which times `unit` is that of `omnivinci evaluate` with the flags `metric`."""

    task: str
    score: str
    unit: float
    metric: list[str]
    asked: list[Asked]


def read_items(av_world: Path) -> list[Item]:
    """Reads the questions of a folder of `omnivinci av_world`; writes a frame and the sound of each clip beside it."""
    items = []
    for line in (av_world / "held_out.jsonl").read_text().splitlines():
        record = json.loads(line)
        video, text = record["messages"][0]["content"]
        clip = av_world / video["video"]
        image, sound = clip.with_suffix(".png"), clip.with_suffix(".wav")
        if clip.suffix == ".mp4" and len(record.get("options", [])) == 4:
            if not sound.exists():
                _take_apart(clip, image, sound)
            answer = record["options"].index(record["messages"][1]["content"])
            items.append(Item(text["text"], record["options"], answer, clip, image, sound))
    return items


def _take_apart(clip: Path, image: Path, sound: Path) -> None:
    with av.open(clip) as container:
        next(container.decode(video=0)).to_image().save(image)
    resampler = av.AudioResampler("s16", "mono", RATE)
    with av.open(clip) as container:
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    soundfile.write(sound, np.concatenate(parts), RATE)


def make_all(items: list[Item], root: Path, home: Path) -> list[Benchmark]:
    """Writes all data sets: tables below `root`, and videos below `home`, the HF_HOME of lmms-eval."""
    makers = (
        _worldsense, _daily_omni, _omni_bench, _mmau, _mmar, _video_mme, _long_video_bench, _mvbench, _chartqa, _docvqa,
        _textvqa, _librispeech, _ami, _covost2_en_de, _covost2_en_ja, _covost2_de_en,
    )  # fmt: skip
    return [maker(items[4 * index % 24 :][:6], root, home) for index, maker in enumerate(makers)]


def _table(path: Path, rows: list[dict[str, Any]], split: str, config: str = "default", **features: Any) -> None:
    """Writes a split as Parquet, and the card that names it."""
    data = Dataset.from_list(rows)
    for column, feature in features.items():
        data = data.cast_column(column, feature)
    (path / config).mkdir(parents=True)
    data.to_parquet(path / config / f"{split}.parquet")
    card = path / "README.md"
    head = card.read_text() if card.exists() else "---\nconfigs:\n---\n"
    entry = f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}.parquet\n---\n"
    card.write_text(head.removesuffix("---\n") + entry)


def _copy(clip: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(clip, target)
    return target


def _bytes(path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": path.name}


def _choices(media: list[list[Path]], items: list[Item]) -> list[Asked]:
    return [Asked(paths, item.letter, item.options) for paths, item in zip(media, items, strict=True)]


def _worldsense(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows, media = [], []
    for index, item in enumerate(items):
        media.append([_copy(item.clip, home / "WorldSense" / "videos" / f"{index}.mp4")])
        rows.append({
            "index": index, "video": f"{index}", "video_path": f"videos/{index}.mp4", "question": item.text,
            "candidates": item.lettered, "answer": item.letter, "task_type": "Audio Recognition", "duration": "<1min",
            "task_domain": "Music", "audio_class": ["Event"], "subtitle_path": f"subtitles/{index}.srt",
        })  # fmt: skip
    _table(root / "lmms-lab" / "worldsense", rows, "test")
    return Benchmark("worldsense", "worldsense_score", 0.01, ["choice"], _choices(media, items))


def _daily_omni(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows, media = [], []
    for index, item in enumerate(items):
        name = f"video_{index:05}"
        media.append([_copy(item.clip, home / "daily_omni" / "Videos" / name / f"{name}_video.mp4")])
        rows.append({
            "Question": item.text, "Choice": item.lettered, "Answer": item.letter, "video_id": name,
            "Type": "AV Event Alignment", "content_parent_category": "Music", "content_fine_category": "Noises",
            "video_category": "Music", "video_duration": ("30s", "60s")[index % 2],
        })  # fmt: skip
    (root / "liarliar" / "Daily-Omni").mkdir(parents=True)
    (root / "liarliar" / "Daily-Omni" / "qa.json").write_text(json.dumps(rows))
    return Benchmark("daily_omni", "accuracy", 1, ["choice"], _choices(media, items))


def _omni_bench(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows = [
        {
            "index": index, "task type": "Object Identification & Description", "audio type": "sound event",
            "question": item.text, "options": item.options, "answer": item.options[item.index],
            "audio": _bytes(item.sound), "image": _bytes(item.image), "image content": "", "audio content": "",
        }
        for index, item in enumerate(items)
    ]  # fmt: skip
    _table(root / "lmms-lab-audio" / "Omni_Bench_fix", rows, "train", audio=Audio(), image=Image())
    media = [[item.sound, item.image] for item in items]
    return Benchmark("omni_bench", "accuracy", 0.01, ["choice"], _choices(media, items))


def _mmau(items: list[Item], root: Path, home: Path) -> Benchmark:
    """The first question has 5 choices, the second 8."""
    more = {0: ["thunder"], 1: ["thunder", "rain", "wind", "a bell"]}
    items = [item._replace(options=more.get(index, []) + item.options) for index, item in enumerate(items)]
    items = [item._replace(index=item.index + len(more.get(index, []))) for index, item in enumerate(items)]
    rows = []
    for index, item in enumerate(items):
        choices = [f"({letter}) {option}" for letter, option in zip("ABCDEFGH", item.options, strict=False)]
        task = ("sound", "music", "speech")[index % 3]
        attributes = {"id": str(index), "task": task, "split": "test-mini", "difficulty": "easy"}
        rows.append({
            "context": _bytes(item.sound), "instruction": item.text, "choices": choices, "answer": choices[item.index],
            "other_attributes": json.dumps(attributes),
        })  # fmt: skip
    _table(root / "gamma-lab-umd" / "MMAU-test-mini", rows, "test", context=Audio())
    media = [[item.sound] for item in items]
    return Benchmark("mmau_v051525_test_mini", "accuracy", 1, ["choice"], _choices(media, items))


def _mmar(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows = [
        {
            "id": str(index), "audio": _bytes(item.sound), "question": item.text, "choices": item.lettered,
            "answer": item.letter, "modality": "sound", "category": "Signal Layer", "sub-category": "Acoustic",
            "subcategory": "Acoustic", "language": "en",
        }
        for index, item in enumerate(items)
    ]  # fmt: skip
    _table(root / "ngqtrung" / "mmar", rows, "test", audio=Audio())
    media = [[item.sound] for item in items]
    return Benchmark("mmar", "mmar_accuracy", 0.01, ["choice"], _choices(media, items))


def _video_mme(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows, media = [], []
    for index, item in enumerate(items):
        media.append([_copy(item.clip, home / "videomme" / "data" / f"clip{index}.mp4")])
        rows.append({
            "video_id": f"{index:03}", "duration": "short", "domain": "Knowledge", "sub_category": "Technology",
            "url": "", "videoID": f"clip{index}", "question_id": f"{index:03}-1", "task_type": "Object Recognition",
            "question": item.text, "options": [f"{option}." for option in item.lettered], "answer": item.letter,
        })  # fmt: skip
    _table(root / "lmms-eval" / "Video-MME", rows, "test")
    return Benchmark("videomme", "videomme_perception_score", 0.01, ["choice"], _choices(media, items))


def _long_video_bench(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows, media = [], []
    for index, item in enumerate(items):
        media.append([_copy(item.clip, home / "datasets" / "longvideobench" / "videos" / f"clip{index}.mp4")])
        options = {f"option{number}": text for number, text in enumerate([*item.options, "N/A"])}
        rows.append({
            "id": f"clip{index}_0", "video_id": f"clip{index}", "video_path": f"clip{index}.mp4", "question": item.text,
            **options, "correct_choice": item.index, "question_category": "S2E", "duration_group": 15, "duration": 9.0,
            "subtitle_path": f"clip{index}.json", "starting_timestamp_for_subtitles": 0,
        })  # fmt: skip
    _table(root / "longvideobench" / "LongVideoBench", rows, "validation")
    return Benchmark("longvideobench_val_v", "lvb_acc", 1, ["choice"], _choices(media, items))


def _mvbench(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows, media = [], []
    for index, item in enumerate(items):
        name = f"video_{index}.mp4"
        media.append([_copy(item.clip, home / "mvbench_video" / "clevrer" / "video_validation" / name)])
        row = {"video": name, "question": item.text, "candidates": item.options, "answer": item.options[item.index]}
        rows.append(row)
    _table(root / "OpenGVLab" / "MVBench", rows, "train", "moving_direction")
    return Benchmark("mvbench_moving_direction", "mvbench_accuracy", 0.01, ["choice"], _choices(media, items))


def _chartqa(items: list[Item], root: Path, home: Path) -> Benchmark:
    answers = ["12.5", "2000", "Blue", "45%", "No", "0.37"]
    rows = [
        {"type": "human_test", "question": item.text, "answer": answer, "image": _bytes(item.image)}
        for item, answer in zip(items, answers, strict=True)
    ]
    _table(root / "lmms-lab-encoder" / "ChartQA", rows, "test", image=Image())
    asked = [Asked([item.image], answer, []) for item, answer in zip(items, answers, strict=True)]
    return Benchmark("chartqa", "relaxed_overall", 1, ["relaxed"], asked)


def _docvqa(items: list[Item], root: Path, home: Path) -> Benchmark:
    answers = [["12 May 1997", "May 12, 1997"], ["ITC Limited"], ["$ 4.5"], ["John Smith", "Smith"], ["Page 3"], ["Ω"]]
    rows = [
        {"questionId": str(index), "question": item.text, "question_types": ["form"], "image": _bytes(item.image),
         "docId": index, "ucsf_document_id": "", "ucsf_document_page_no": "1", "answers": answers[index],
         "data_split": "val"}
        for index, item in enumerate(items)
    ]  # fmt: skip
    _table(root / "lmms-lab-encoder" / "DocVQA", rows, "validation", "DocVQA", image=Image())
    asked = [Asked([item.image], answers[index], []) for index, item in enumerate(items)]
    return Benchmark("docvqa_val", "anls", 1, ["anls"], asked)


def _textvqa(items: list[Item], root: Path, home: Path) -> Benchmark:
    # Without articles and contractions: lmms-eval takes them out of people's answers too, but VQA v2's script does not.
    people = [["stop"] * 8 + ["sign"] * 2, ["two"] * 2 + ["2"] * 8, ["cat"] * 3 + ["dog"] * 7, ["no"] * 10,
              ["blue"] * 9 + ["light blue"], ["kodak"] * 1 + ["nokia"] * 9]  # fmt: skip
    rows = [
        {"image_id": str(index), "question_id": index, "question": item.text, "image": _bytes(item.image),
         "answers": people[index], "ocr_tokens": ["STOP"], "set_name": "val"}
        for index, item in enumerate(items)
    ]  # fmt: skip
    _table(root / "lmms-lab-encoder" / "textvqa", [{**row, "answer": ""} for row in rows], "validation", image=Image())
    asked = [Asked([item.image], people[index], []) for index, item in enumerate(items)]
    return Benchmark("textvqa_val", "exact_match", 1, ["vqa"], asked)


_SAID = ["HE HOPED THERE WOULD BE STEW FOR DINNER", "STUFF IT INTO YOU HIS BELLY COUNSELLED HIM", "YES",
         "MISTER BROWN PAID TWENTY ONE DOLLARS", "IT'S COLOUR WAS GREY", "NUMBER TEN FRESH NELLY"]  # fmt: skip


def _librispeech(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows = [
        {"audio": _bytes(item.sound), "source": f"test-clean/{index}.flac", "gt": _SAID[index], "task": "asr_en"}
        for index, item in enumerate(items)
    ]
    _table(
        root / "lmms-lab-audio" / "librispeech", rows, "librispeech_test_clean", "librispeech_test_clean", audio=Audio()
    )
    asked = [Asked([item.sound], _SAID[index], []) for index, item in enumerate(items)]
    return Benchmark("librispeech_test_clean", "wer", 0.01, ["wer"], asked)


# Without numbers, fillers and contractions: lmms-eval does not use Whisper's normalizer here.
_MEETING = ["SO THE REMOTE IS YELLOW", "RIGHT", "AND WE WANT IT TO LOOK FANCY AND FEEL SOFT", "OKAY THEN",
            "WHO WOULD BUY THAT", "LET US MOVE ON TO THE NEXT SLIDE"]  # fmt: skip


def _ami(items: list[Item], root: Path, home: Path) -> Benchmark:
    rows = [
        {"meeting_id": "EN2002a", "audio_id": f"AMI_{index}", "text": _MEETING[index], "audio": _bytes(item.sound),
         "begin_time": 0.0, "end_time": 9.0, "microphone_id": "H00", "speaker_id": "MEE073"}
        for index, item in enumerate(items)
    ]  # fmt: skip
    _table(root / "edinburghcstr" / "ami", rows, "test", "ihm", audio=Audio(sampling_rate=RATE))
    asked = [Asked([item.sound], _MEETING[index], []) for index, item in enumerate(items)]
    return Benchmark("ami_test", "wer", 1, ["wer"], asked)


def _covost2(items: list[Item], root: Path, direction: str, name: str, texts: list[str], tokenizer: str) -> Benchmark:
    rows = [
        {"client_id": "c", "file": f"common_voice_{index}.mp3", "audio": _bytes(item.sound), "sentence": "-",
         "translation": texts[index], "id": f"common_voice_{index}"}
        for index, item in enumerate(items)
    ]  # fmt: skip
    _table(root / "fixie-ai" / "covost2", rows, "test", direction, audio=Audio(sampling_rate=RATE))
    asked = [Asked([item.sound], texts[index], []) for index, item in enumerate(items)]
    return Benchmark(f"covost2_pairs_{name}", "bleu", 1, ["bleu", "--bleu_tokenizer", tokenizer], asked)


def _covost2_en_de(items: list[Item], root: Path, home: Path) -> Benchmark:
    texts = ["Das ist, so sagt man, ein grüner Baum.", "Wir fahren morgen früh nach Köln.", "Er kam, sah und ging.",
             "Die Straße ist 3,5 km lang.", "„Nein“, sagte sie laut.", "Sie liest jeden Abend ein Buch."]  # fmt: skip
    return _covost2(items, root, "en_de", "en_de", texts, "13a")


def _covost2_en_ja(items: list[Item], root: Path, home: Path) -> Benchmark:
    texts = ["これは緑の木です。", "明日の朝、京都へ行きます。", "彼は来て、見て、去った。", "道は長いです。",
             "彼女は「いいえ」と言った。", "毎晩本を読みます。"]  # fmt: skip
    return _covost2(items, root, "en_ja", "en_ja", texts, "char")


def _covost2_de_en(items: list[Item], root: Path, home: Path) -> Benchmark:
    texts = ["This is a green tree, they say.", "We'll drive to Cologne early tomorrow.", "He came, saw and left.",
             "The road is 3.5 km long.", "\"No\", she said loudly.", "She reads a book every evening."]  # fmt: skip
    return _covost2(items, root, "de_en", "de_en", texts, "13a")
