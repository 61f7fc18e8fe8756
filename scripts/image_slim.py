"""Makes an environment of Batcher smaller, for the container image: half of it is what no command of ours opens.

    python scripts/image_slim.py /opt/batcher

Debug symbols, tests, headers and stubs go, and the parts of packages in `UNUSED`. The image's build completes a row
afterwards, so that a package which has come to need what was deleted fails there and not in a worker.
"""

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

#: Below site-packages. Deleted whole.
UNUSED = (
    "pyarrow/include",
    "pyarrow/includes",
    "pyarrow/src",
    # Servers and file systems of Arrow's own: jobs live in folders, and results in Parquet.
    "pyarrow/*flight*.so*",
    "pyarrow/_substrait*.so",
    "pyarrow/*_s3*.so*",
    "pyarrow/_s3fs*.so",
    "pyarrow/_gcsfs*.so",
    "pyarrow/_azurefs*.so",
    "pyarrow/_hdfs*.so",
    "pyarrow/_orc*.so",
    "pyarrow/_dataset_orc*.so",
    "pyarrow/_pyarrow_cpp_tests*.so",
    "pyarrow/*parquet_encryption*.so*",
    "numpy/f2py",
    "numpy/distutils",
    "numpy/testing",
    "numpy/_core/_simd*.so",
    "llama_cpp/include",
    "llama_cpp/lib/cmake",
    "llama_cpp/lib/pkgconfig",
    # For processors that were hardly sold; they take the next best.
    "llama_cpp/lib/libggml-cpu-cannonlake.so",
    "llama_cpp/lib/libggml-cpu-cooperlake.so",
    # Celery's interactive shell.
    "prompt_toolkit*",
    "click_repl*",
    "wcwidth*",
    # Colors of source code and Markdown, which Rich has where somebody prints some.
    "pygments*",
    "markdown_it*",
    "mdurl*",
    # For who would uninstall something.
    "*.dist-info/RECORD",
)
UNUSED_ANYWHERE = ("tests", "*.a", "*.h", "*.hpp", "*.pxd", "*.pyi", "*.pyx")


def main() -> None:
    """Slim the environment that the first argument names."""
    (site,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    for pattern in (*UNUSED, *(f"**/{name}" for name in UNUSED_ANYWHERE)):
        for path in list(site.glob(pattern)):
            delete(path)
    # Those in NAME.libs were moved there by auditwheel, and `strip` tears what it has patched.
    libraries = [path for path in site.rglob("*.so*") if path.is_file() and path.parent.suffix != ".libs"]
    subprocess.run(["/usr/bin/strip", "--strip-unneeded", *libraries], check=True)
    for folder in {path.parent for path in libraries}:
        link_twins(folder)


def link_twins(folder: Path) -> None:
    """One file for a library that lies there under several names, as wheels know no links: the others lead to it."""
    for path in sorted(folder.glob("*.so")):
        for twin in folder.glob(f"{path.name}.*"):
            if not twin.is_symlink() and filecmp.cmp(path, twin, shallow=False):
                twin.unlink()
                twin.symlink_to(path.name)


def delete(path: Path) -> None:
    """A file, or a folder with all that is in it; one that is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
