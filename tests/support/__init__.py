"""What tests are written with: doubles that are small real implementations, benches, files, and ways to wait.

Time and trouble
clock.py            a clock that a test moves
pseudo_terminal.py  a terminal, and what stands on its screen
waiting.py          waiting for what another thread or process does
wall_clock.py       another time of day for a process
kernel.py           the kernel of a notebook
damage.py           files that went bad
crashing.py         a process that dies between two steps

Jobs
job_files.py        jobs made of the real files, and the rows of their results
retrying.py         rows that a retry has opened, and workers that answer them
memory_store.py     a store of jobs without a disk
submitted.py        files for submit, and what it made of them
parsing.py          rows as the readers give them, parsed
bombs.py            small files that are large where they are read
any_arrays.py       arrays of every Arrow type
completing.py       completes a job in this process
shard_bench.py      one shard, and what its runner needs

Engines
engine_contract.py  the tests that every engine passes
manual_engine.py    an engine that answers when it is told to
fake_model.py       a model that computes nothing, below the real engine
tiny_gguf.py        a real model file, tiny and random
zoo.py              the same of every architecture that the engine is tried on
vocabularies.py     and of every kind of vocabulary
attention_op.py     one attention of llama.cpp's alone, and what it should come to
schemas.py          JSON schemas over all keywords
tiny_engine.py      the real engine on it
plain_decoding.py   decoding by the definitions, to compare with
bare_llama.py       llama.cpp alone: quantizes, decodes a token of each sequence
regret.py           an engine's tokens judged by llama.cpp alone
openai_server.py    a server of the OpenAI API that answers what a test says, and no answer at all
dialect_shapes.py   what each kind of server says of itself
remote_engine.py    the engine behind its URL
fault_proxy.py      a proxy before any server that answers a share of the requests badly

The API
api_client.py       requests without sockets
scripted_engine.py  a live engine that follows a script
live_server.py      the app with sockets, in a thread
scripted_server.py  `batcher serve` with a scripted engine
batch_bench.py      files and batches on a jobs root
api_bench.py        their routes, served

Models
hub_server.py       as much of huggingface.co as its client needs, and its faults
model_stores.py     what Ollama and the hub's programs leave on a disk

Processes
family.py           commands, workers and all that they start, and the audit of a job's rows
serving.py          `batcher serve`
long_runs.py        around a program that tries Batcher for minutes
redis_server.py     a broker that many share
queues.py           what lies in the queues of a broker

field_tables.py     writes the tables of docs/serving.md, and checks them
metric_tables.py   the tables of docs/metrics.md, made of what server and worker answer
"""
