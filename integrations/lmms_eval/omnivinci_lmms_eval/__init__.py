"""lmms-eval asks `omnivinci serve`."""


def manifest():
    """Registers the model `omnivinci_server` (entry point group `lmms_eval.models`)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("omnivinci_server", simple_class_path="omnivinci_lmms_eval.model.OmniVinciServer")
