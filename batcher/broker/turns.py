"""The messages of a queue: in what order they lie there, and how many a job has among them.

A queue has a list for each priority, of which workers take from the most urgent that is not empty, at the right end:

    batcher:batcher.<scope>.<model>[:<priority>]   list of messages, the next one to be taken at the right

Within a list the jobs take turns. A message has a *round*: that of the message which is taken next, and one more for
each that its job has in the queue already. It is put behind those of its round or an earlier one. So of three jobs with
any number of messages every third is one of each, and the first of a job that comes later is behind one of each
other. Jobs that have to be finished by some time go before those that have not, the earliest first, and those of one
time take turns. A message without a turn was in work before, and is at the front.

Beside the lists there are two keys for each job and queue. Both can be lost, and live a day after the last use:

    batcher:queued:<queue>:<job_id>   set of the shards that have a message in the queue
        `_OFFER`     SADD, and LINSERT of the message, as long as there are fewer than the window; counts the lists anew
                     where there is no set
        `_FIRST`     SADD, and RPUSH of the message
        `taken`      SREM, by the worker that took a message
        `_COUNT`     made anew from what is in the lists
        `_MOVE`      likewise, when messages go to another priority
    batcher:cursor:<queue>:<job_id>   string, how far the job has come in the order in which its shards are sent
        `_OFFER`     SET; too low a one has shards looked at for nothing, and with none they are left to the sweep

A worker that dies between taking a message and saying so leaves a shard in the set that has no message. The sweep reads
the lists and counts anew, so nothing rests on the set but that a job keeps to its window meanwhile.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import redis

from batcher.broker.client import (
    cursor_key,
    lease_key,
    queue_key,
    queue_lists,
    queue_name,
    queued_key,
    trouble,
)
from batcher.broker.messages import encode_message
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.types import PRIORITIES

#: Seconds that what is known of a job's messages lives.
KEPT_S = 86_400
#: Of a cursor.
_MAX_DIGITS = 10
#: Of a job that need not be finished by any time; more seconds than any time has.
NO_TIME = 99_999_999_999

# What the scripts share. A list is read in pieces, as the place of a message is mostly near its left end. Anybody may
# have put a message there: a shard or a time of more digits than ours have is none.
_SHARED = """
local STEP = 32

local function turn_of(message)
  local due, round = string.match(message, '"turn": "(%d+) (%d+)"')
  return tonumber(due), tonumber(round)
end

local function shard_of(message, job)
  local owner, shard = string.match(message, '"of": "([%w_.-]+)/(%d+)"')
  return owner == job and #shard < 10 and shard
end

-- The round of the message that is taken next of those that are due at that time.
local function first_round(list, due)
  local last = -1
  while true do
    local found = redis.call('LRANGE', list, last - STEP + 1, last)
    for i = #found, 1, -1 do
      local other_due, round = turn_of(found[i])
      if other_due == due then
        return round
      elseif other_due and other_due > due then
        return 0
      end
    end
    if #found < STEP then
      return 0
    end
    last = last - STEP
  end
end

-- Put a message behind all whose turn is not later.
local function place(list, due, round, message)
  message = string.gsub(message, '"turn": "[^"]*"', string.format('"turn": "%.0f %.0f"', due, round), 1)
  local first = 0
  while true do
    local found = redis.call('LRANGE', list, first, first + STEP - 1)
    for _, other in ipairs(found) do
      local other_due, other_round = turn_of(other)
      if not other_due or other_due < due or (other_due == due and other_round <= round) then
        redis.call('LINSERT', list, 'BEFORE', other, message)
        return
      end
    end
    if #found < STEP then
      redis.call('RPUSH', list, message)
      return
    end
    first = first + STEP
  end
end

-- Make the set of the shards of a job that have a message. Lists are KEYS[from] to KEYS[to].
local function count(queued, from, to, job)
  redis.call('DEL', queued)
  for i = from, to do
    for _, message in ipairs(redis.call('LRANGE', KEYS[i], 0, -1)) do
      local shard = shard_of(message, job)
      if shard then
        redis.call('SADD', queued, shard)
      end
    end
  end
end
"""

# KEYS[1] the set, KEYS[2] the cursor, KEYS[3...12] the lists of the queue, then the lease of each shard;
# ARGV[1] the job id, ARGV[2] the window, ARGV[3] which of the lists, ARGV[4] when the job is due, ARGV[5] seconds that
# set and cursor live, ARGV[6] the cursor when all is offered ('' leaves it alone), then of each shard its number, the
# cursor at it and the message. Returns how many were sent, and whether the window was full before the end.
_OFFER = (
    _SHARED
    + """
local queued, list, due = KEYS[1], KEYS[2 + ARGV[3]], tonumber(ARGV[4])
if redis.call('EXISTS', queued) == 0 then
  count(queued, 3, 12, ARGV[1])
end
local num_queued, num_sent, is_full = redis.call('SCARD', queued), 0, 0
local cursor = ARGV[6]
for i = 13, #KEYS do
  local at = 7 + 3 * (i - 13)
  if num_queued >= tonumber(ARGV[2]) then
    cursor, is_full = ARGV[at + 1], 1
    break
  end
  if redis.call('EXISTS', KEYS[i]) == 0 and redis.call('SADD', queued, ARGV[at]) == 1 then
    place(list, due, first_round(list, due) + num_queued, ARGV[at + 2])
    num_queued = num_queued + 1
    num_sent = num_sent + 1
  end
end
redis.call('EXPIRE', queued, ARGV[5])
if cursor ~= '' then
  redis.call('SET', KEYS[2], cursor, 'EX', ARGV[5])
end
return {num_sent, is_full}
"""
)

# KEYS[1] the set, KEYS[2] the list; ARGV[1] the shard, ARGV[2] the message, ARGV[3] seconds that the set lives.
_FIRST = """
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
"""

# KEYS[1] the set, KEYS[2...11] the lists; ARGV[1] the job id, ARGV[2] seconds that the set lives. Returns the shards.
_COUNT = (
    _SHARED
    + """
count(KEYS[1], 2, 11, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('SMEMBERS', KEYS[1])
"""
)

# KEYS the lists. Returns, for each message that says whose it is, the number of its list, when it is due ('' for one
# without a turn), the job id and the shard.
_READ = """
local found = {}
for i, list in ipairs(KEYS) do
  for _, message in ipairs(redis.call('LRANGE', list, 0, -1)) do
    local job, shard = string.match(message, '"of": "([%w_.-]+)/(%d+)"')
    local due = string.match(message, '"turn": "(%d+) ') or ''
    if job and #shard < 10 then
      found[#found + 1] = i .. '/' .. (#due < 12 and due or '') .. '/' .. job .. '/' .. shard
    end
  end
end
return found
"""


# KEYS[1] the set, KEYS[2...11] the lists; ARGV[1] the job id, ARGV[2] which of the lists, ARGV[3] when the job is due,
# ARGV[4] seconds that the set lives. Takes all messages of the job out, and puts them where they belong.
_MOVE = (
    _SHARED
    + """
local target, due, found = KEYS[1 + ARGV[2]], tonumber(ARGV[3]), {}
for i = 2, 11 do
  local messages = redis.call('LRANGE', KEYS[i], 0, -1)
  for j = #messages, 1, -1 do
    if shard_of(messages[j], ARGV[1]) then
      redis.call('LREM', KEYS[i], 1, messages[j])
      found[#found + 1] = messages[j]
    end
  end
end
local first, num_placed = first_round(target, due), 0
for i, message in ipairs(found) do
  if turn_of(message) then
    place(target, due, first + num_placed, message)
    num_placed = num_placed + 1
  end
end
for i = #found, 1, -1 do
  if not turn_of(found[i]) then
    redis.call('RPUSH', target, found[i])
  end
end
count(KEYS[1], 2, 11, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""
)


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a job stands among others: its priority, and when it has to be finished (Unix seconds)."""

    priority: int
    due_s: int = NO_TIME


@dataclass(frozen=True, slots=True)
class Offer:
    """A shard that may be sent, and the cursor at it."""

    shard: int
    cursor: int = 0


@dataclass(frozen=True, slots=True)
class Offered:
    """How many were sent, and whether the window was full before all were looked at."""

    num_sent: int
    is_full: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The messages of a job that lie in a queue: the shards, the priorities of their lists, and when they are due."""

    shards: frozenset[int]
    priorities: frozenset[int]
    due_s: frozenset[int]

    def belongs_to(self, turn: Turn) -> bool:
        """Whether all of them lie where they belong."""
        return self.priorities <= {turn.priority} and self.due_s <= {turn.due_s}


NOTHING = Found(frozenset(), frozenset(), frozenset())


class Turns:
    """The queues of a scope. Every method raises BrokerError where the broker is away, or is full."""

    def __init__(self, client: redis.Redis, *, scope: str) -> None:
        self._client = client
        self._scope = scope
        self._offer = client.register_script(_OFFER)
        self._first = client.register_script(_FIRST)
        self._count = client.register_script(_COUNT)
        self._read = client.register_script(_READ)
        self._move = client.register_script(_MOVE)

    def offer(
        self, job: JobDir, model: str, offers: Sequence[Offer], *, turn: Turn, window: int, end: int | None
    ) -> Offered:
        """Send those of `offers` that nobody works on and that have no message, until the job has `window` messages.

        The cursor is left at the first that was not looked at, or at `end`; None leaves it alone. One round trip.
        """
        queue, lists, identity = self._queue(model), self._lists(model), job.manifest.identity
        keys = [queued_key(job.job_id, queue), cursor_key(job.job_id, queue), *lists]
        keys += [lease_key(identity, each.shard) for each in offers]
        args: list[str | int | bytes] = [job.job_id, window, _number(turn.priority), turn.due_s, KEPT_S]
        args.append("" if end is None else end)
        for each in offers:
            args += [each.shard, each.cursor, encode_message(job.job_id, each.shard, queue=queue)]
        with _asking(model):
            num_sent, is_full = self._offer(keys=keys, args=args)
        return Offered(num_sent, bool(is_full))

    def send_first(self, job: JobDir, model: str, shard: int, *, priority: int) -> None:
        """Send a shard that was in work before, so that it is the next of its priority. Whatever has a message already
        gets another: it may be a long way back."""
        queue = self._queue(model)
        message = encode_message(job.job_id, shard, queue=queue, has_turn=False)
        keys = [queued_key(job.job_id, queue), queue_key(model, scope=self._scope, priority=priority)]
        with _asking(model):
            self._first(keys=keys, args=[shard, message, KEPT_S])

    def taken(self, job: JobDir, model: str, shard: int) -> None:
        """Note that the message of a shard is not in the queue any more."""
        with _asking(model):
            self._client.srem(queued_key(job.job_id, self._queue(model)), shard)

    def rewind(self, job: JobDir, model: str) -> None:
        """Have the job's shards be sent from the first one on: some were opened again."""
        with _asking(model):
            self._client.set(cursor_key(job.job_id, self._queue(model)), 0, ex=KEPT_S)

    def state(self, job: JobDir, model: str) -> tuple[int | None, int]:
        """How far the job has come in sending its shards, None where nobody knows; and how many messages it is believed
        to have. One round trip."""
        queue = self._queue(model)
        with _asking(model), self._client.pipeline(transaction=False) as pipe:
            pipe.get(cursor_key(job.job_id, queue))
            pipe.scard(queued_key(job.job_id, queue))
            cursor, num_queued = pipe.execute()
        # Whoever can write there may have put anything.
        is_number = isinstance(cursor, bytes) and cursor.isdigit() and len(cursor) < _MAX_DIGITS
        return int(cursor) if is_number else None, num_queued

    def count(self, job: JobDir, model: str) -> frozenset[int]:
        """The shards of the job that have a message, by what is in the lists. Reads all of the queue."""
        keys = [queued_key(job.job_id, self._queue(model)), *self._lists(model)]
        with _asking(model):
            return frozenset(map(int, self._count(keys=keys, args=[job.job_id, KEPT_S])))

    def read(self, model: str) -> Mapping[str, Found]:
        """The messages of all jobs, by job id. Reads all of the queue; those of older versions don't say whose they
        are."""
        with _asking(model):
            lines = self._read(keys=self._lists(model))
        found: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for line in lines:
            number, due_s, job_id, shard = line.decode().split("/")
            found[job_id].append((int(shard), _priority(int(number)), due_s))
        return {
            job_id: Found(
                frozenset(shard for shard, _, _ in messages),
                frozenset(priority for _, priority, _ in messages),
                frozenset(int(due_s) for _, _, due_s in messages if due_s),
            )
            for job_id, messages in found.items()
        }

    def move(self, job: JobDir, model: str, turn: Turn) -> None:
        """Put all messages of the job where they belong now, from whatever priority. Reads all of the queue."""
        keys = [queued_key(job.job_id, self._queue(model)), *self._lists(model)]
        with _asking(model):
            self._move(keys=keys, args=[job.job_id, _number(turn.priority), turn.due_s, KEPT_S])

    def _queue(self, model: str) -> str:
        return queue_name(model, scope=self._scope)

    def _lists(self, model: str) -> tuple[str, ...]:
        return queue_lists(model, scope=self._scope)


def _number(priority: int) -> int:
    """Which of `queue_lists` it is, from 1."""
    return len(PRIORITIES) - priority


def _priority(number: int) -> int:
    return len(PRIORITIES) - number


@contextlib.contextmanager
def _asking(model: str) -> Iterator[None]:
    try:
        yield
    except redis.RedisError as exc:
        raise BrokerError(f"broker: the queue of {model} could not be read or written: {trouble(exc)}") from exc
