"""What the rooms that make and change jobs ask of a broker. Whoever calls them brings it; none of them imports one."""

from collections.abc import Callable, Sequence

from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo

#: Has these shards of a job worked on, and returns how many; shards of refused rows need no worker. What goes to the
#: workers now is what the job's window holds, and the rest follows by itself (`batcher/broker/sender.py`). Raises
#: BrokerError; what was not sent then is sent by a later call, or by whoever sweeps the job. A call too many costs
#: nothing.
Send = Callable[[JobDir, Sequence[ShardInfo]], int]
