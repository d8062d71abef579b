"""Turns `generation_kwargs` of a task into fields of a request."""

from typing import Any

_UNREAD = {"image_aspect_ratio", "length_penalty", "use_cache"}  # of other models, or without meaning here


def sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the sampling fields; raises ValueError for settings that the server does not have."""
    settings = {key: value for key, value in settings.items() if value is not None and key not in _UNREAD}
    if settings.pop("num_beams", 1) != 1:
        raise ValueError("num_beams: the server has no beam search: give --gen_kwargs num_beams=1")
    temperature = float(settings.pop("temperature", 1 if settings.get("do_sample") else 0))
    fields: dict[str, Any] = {"max_tokens": int(settings.pop("max_new_tokens", 1024)), "temperature": 0.0}
    nucleus, most = settings.pop("top_p", 1), settings.pop("top_k", 0)
    if settings.pop("do_sample", True) and temperature > 0:
        fields |= {"temperature": temperature, "top_p": float(nucleus or 1), "top_k": int(most)}
    stop = settings.pop("until", [])
    if stop := [text for text in ([stop] if isinstance(stop, str) else stop) if text]:
        fields["stop"] = stop
    if "repetition_penalty" in settings:
        fields["repetition_penalty"] = float(settings.pop("repetition_penalty"))
    if settings:
        raise ValueError(f"the server does not have {', '.join(sorted(settings))}")
    return fields
