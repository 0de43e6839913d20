"""What a plain run imports: torch and what it is asked for, not the libraries that happen to be installed."""

# Each costs between 0.1 s and 2 s; together they took longer than torch.
NOT_FOR_IMAGES = set(
    "cv2 diffusers ftfy huggingface_hub imwatermark matplotlib open_clip pandas pytorch_lightning "
    "pywt scipy sympy timm tokenizers torchvision transformers torch._dynamo torch._inductor".split()
)
PLAIN = ("--prompt", "a fox", "--steps", 1, "--n_samples", 1, "--n_iter", 1)


def imported(run_alone, *flags: object) -> set[str]:
    """Return the modules that a run with the demo model imported."""
    outcome = run_alone("txt2img.py", *PLAIN, *flags, python_args=("-X", "importtime"))
    assert outcome.code == 0 and "00000.png" in outcome.out, outcome.err
    return {line.rsplit("|", 1)[-1].strip() for line in outcome.err.splitlines() if "|" in line}


def test_a_plain_run_imports_no_library_that_it_does_not_need(run_alone):
    modules = imported(run_alone)
    assert {"torch", "ldm.models.clip_blocks", "ldm.prompts.tokenizer", "PIL.Image"} <= modules
    assert modules & NOT_FOR_IMAGES == set()
