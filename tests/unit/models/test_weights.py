"""Which models are among the files of a repository, by the names that people give to files."""

import pytest

from batcher.models.weights import names_in, weights_among

#: As in repositories of the hub.
FILES = [
    "README.md",
    "config.json",
    "Qwen3-8B-Q4_K_M.gguf",
    "Qwen3-8B-UD-Q4_K_XL.gguf",
    "Qwen3-8B-IQ4_NL.gguf",
    "Q8_0/Qwen3-8B-Q8_0-00001-of-00002.gguf",
    "Q8_0/Qwen3-8B-Q8_0-00002-of-00002.gguf",
    "BF16/Qwen3-8B-00001-of-00003.gguf",
    "BF16/Qwen3-8B-00002-of-00003.gguf",
    "mmproj-F16.gguf",
    "imatrix_unsloth.gguf",
    "mtp-Qwen3-8B-Q8_0.gguf",
    "Qwen3-8B-MXFP4_MOE.gguf",
    "Qwen3-8B-TQ1_0.gguf",
]


def test_each_model_has_a_name_and_all_its_files() -> None:
    named = names_in("Qwen/Qwen3-8B-GGUF", weights_among(FILES))

    assert {name.partition(":")[2]: weights.files for name, weights in named.items()} == {
        "Q4_K_M": ("Qwen3-8B-Q4_K_M.gguf",),
        "UD-Q4_K_XL": ("Qwen3-8B-UD-Q4_K_XL.gguf",),
        "IQ4_NL": ("Qwen3-8B-IQ4_NL.gguf",),
        "Q8_0": ("Q8_0/Qwen3-8B-Q8_0-00001-of-00002.gguf", "Q8_0/Qwen3-8B-Q8_0-00002-of-00002.gguf"),
        # By its folder, and also the file that is missing.
        "BF16": tuple(f"BF16/Qwen3-8B-0000{number}-of-00003.gguf" for number in (1, 2, 3)),
        "MXFP4_MOE": ("Qwen3-8B-MXFP4_MOE.gguf",),
        "TQ1_0": ("Qwen3-8B-TQ1_0.gguf",),
    }


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], {"O/R/a-Q8_0.gguf", "O/R/b-Q8_0.gguf"}),
        (["plain.gguf"], {"O/R/plain.gguf"}),
        (["a-Q8_0.gguf", "b-Q8_0.gguf", "a-Q4_0.gguf"], {"O/R/a-Q8_0.gguf", "O/R/b-Q8_0.gguf", "O/R:Q4_0"}),
        ([], set()),
    ],
)
def test_model_that_its_quantization_does_not_tell_apart_is_named_by_its_file(
    files: list[str], names: set[str]
) -> None:
    assert set(names_in("O/R", weights_among(files))) == names
