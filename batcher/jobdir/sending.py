"""What the rooms that make and change jobs ask of a broker. Whoever calls them brings it; none of them imports one."""

from collections.abc import Callable, Sequence

from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo

#: Sends a message for each of these shards of a job to the workers, and returns how many; shards of refused rows need
#: none. Raises BrokerError; what was not sent then is sent by a later call, or by whoever sweeps the job. A message too
#: many costs nothing.
Send = Callable[[JobDir, Sequence[ShardInfo]], int]
