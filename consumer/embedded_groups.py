"""Consumer groups on the embedded broker: what has to be done there that Kafka does itself.

Tansu 0.6 (see `consumer.broker`) has a hole in its groups. It takes a member that leaves for the leader's end only
while the group is formed. A leader that leaves while the group is forming, as it is for as long as nobody has joined
anew since another member came or left, stays the leader, for ever: each later member is told to wait for the
assignments of one who has gone. Seen whenever a run with two workers stopped and its leader was the second to leave;
the next start was never ready.

What clears a leader there: that it leaves while the group is formed, or that its session ends while it is a member. Not
that it leaves again (it is not a member), nor any time. Deleting the group does, but takes its positions along. Two
things follow:

- A leader that leaves has the group formed first (`leave`). It needs no request to join for that, which would take half
  a session: the broker takes assignments from the leader for all members of the generation of now, which its heartbeats
  find out. Nobody is meant to live by these assignments, and they are empty.
- Another member may come or go a moment before it leaves. So each member whose group does not form looks whether the
  leader that it was told of is a member. Where it is not, nobody else can be, for an id is never given twice; then the
  member joins under that id too, and leaves under it as above.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaError, NoError, RebalanceInProgressError, for_code
from kafka.protocol.admin import DescribeGroupsRequest
from kafka.protocol.consumer import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription
from kafka.structs import MemberState

if TYPE_CHECKING:
    from kafka import KafkaConsumer

log = logging.getLogger(__name__)

GENERATIONS = 1_000
"""How far a group may have gone on without its leader, at most, for its generation to be found."""

ANSWER_MS = 6_000
"""How long one answer may take: five seconds where the embedded broker waits for a group to form."""

LEAVE_MS = 2_000
"""How long having the group formed may take, before it is left as it is. Usual are a few milliseconds."""

VERSION = 0
NOTHING = ConsumerProtocolAssignment(version=VERSION, assigned_partitions=[], user_data=b"").encode()
"""An assignment without partitions, as members understand it."""

NOBODY = ConsumerProtocolSubscription(version=VERSION, topics=[], user_data=b"").encode()
"""A subscription to nothing, as a leader understands it."""


class EmbeddedMember:
    """Keeps one consumer's group on the embedded broker in order. Its requests run on the client's I/O thread."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        """To be made before the consumer's first poll.

        kafka-python 3.0.12 tells in public neither who leads a group nor that it has not formed: it is listened to
        where it takes in the answer to a request to join, and where it begins another one.
        """
        self._coordinator: Any = consumer._coordinator  # noqa: SLF001 - see above
        self._leader, self._protocol = "", ""
        self._take_in = self._coordinator._process_join_group_response  # noqa: SLF001 - see above
        self._join = self._coordinator._do_join_and_sync_async  # noqa: SLF001 - see above
        self._coordinator._process_join_group_response = self._joined  # noqa: SLF001 - see above
        self._coordinator._do_join_and_sync_async = self._join_again  # noqa: SLF001 - see above

    def leave(self) -> None:
        """To be called right before the consumer is closed: where we lead, leave so that nobody waits for us."""
        me = self._me
        if self._coordinator.state is not MemberState.STABLE or self._leader != me.member_id:
            return
        try:
            self._coordinator._net.run(self._leave, me.member_id, me.generation_id)  # noqa: SLF001 - as above
        except KafkaError as error:
            log.info("the embedded broker's group is left while it is forming: %s: %s", type(error).__name__, error)

    @property
    def _me(self) -> Any:
        """Who we are in the group: member_id, generation_id."""
        return self._coordinator._generation  # noqa: SLF001 - in public only on the threads of others

    def _joined(self, response: Any, send_time: float) -> Any:
        """In place of the client's own: remember who leads."""
        taken = self._take_in(response, send_time)
        self._leader, self._protocol = response.leader, response.protocol_name
        return taken

    async def _join_again(self) -> bytes:
        """In place of the client's own: where the time before has come to nothing, see whether it could have."""
        leader = self._leader
        try:
            if leader not in {"", self._me.member_id} and leader not in await self._members():
                log.warning("the embedded broker waits for a leader that has left the group: setting that right")
                await self._remove(leader)
        except KafkaError as error:
            log.warning("the embedded broker's group is not set right: %s: %s", type(error).__name__, error)
        assignment: bytes = await self._join()
        if self._leader != self._me.member_id:
            self._leader = ""
        return assignment

    async def _remove(self, leader: str) -> None:
        """Join under the id of a leader that has gone, and leave as it should have."""
        session_ms = self._coordinator.config["session_timeout_ms"]
        request = JoinGroupRequest(
            group_id=self._coordinator.group_id,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=session_ms,
            member_id=leader,
            group_instance_id=None,
            protocol_type=self._coordinator.protocol_type(),
            protocols=[(self._protocol, NOBODY)],
            max_version=7,
        )
        joined = _taken(await self._ask(request, session_ms + ANSWER_MS))
        if joined.leader == leader:
            await self._form_and_leave(leader, await self._now(leader, joined.generation_id))
        else:
            await self._ask(self._leaving(leader))

    async def _leave(self, leader: str, generation: int) -> None:
        """Leave as the leader, who knows of this generation as the last; the client has then no group to leave."""

        async def leave() -> None:
            now = await self._now(leader, generation)
            if now == generation:
                await self._ask(self._leaving(leader))
            else:
                await self._form_and_leave(leader, now)

        manager = self._coordinator._manager  # noqa: SLF001 - as above
        await manager.wait_for(manager.call_soon(leave), LEAVE_MS)
        self._coordinator.reset_generation()

    async def _form_and_leave(self, leader: str, generation: int) -> None:
        """Have the group formed in its generation of now, and leave: two requests in one go, so that nobody is between.

        Its leader, who is a member, assigns nothing to anybody.
        """
        forming = SyncGroupRequest(
            group_id=self._coordinator.group_id,
            generation_id=generation,
            member_id=leader,
            group_instance_id=None,
            protocol_type=self._coordinator.protocol_type(),
            protocol_name=self._protocol,
            assignments=[(member, NOTHING) for member in await self._members()],
            max_version=5,
        )
        answers = [self._ask(forming), self._ask(self._leaving(leader))]
        for answer in answers:
            _taken(await answer)

    def _leaving(self, member: str) -> LeaveGroupRequest:
        """The request to leave."""
        who = LeaveGroupRequest.MemberIdentity(member_id=member, group_instance_id=None, reason=None)
        return LeaveGroupRequest(group_id=self._coordinator.group_id, member_id=member, members=[who])

    async def _now(self, member: str, generation: int) -> int:
        """The group's generation of now, which is this one or a later one."""
        for now in range(generation, generation + GENERATIONS):
            request = HeartbeatRequest(
                group_id=self._coordinator.group_id, generation_id=now, member_id=member, group_instance_id=None
            )
            answer = await self._ask(request)
            if for_code(answer.error_code) is not RebalanceInProgressError:
                _taken(answer)
                return now
        msg = f"the group has gone on by more than {GENERATIONS} generations"
        raise RebalanceInProgressError(msg)

    async def _members(self) -> list[str]:
        """Ids of the group's members."""
        groups = [self._coordinator.group_id]
        answer = await self._ask(DescribeGroupsRequest(groups=groups, include_authorized_operations=False))
        return [member.member_id for member in _taken(answer.groups[0]).members]

    def _ask(self, request: Any, within_ms: float = ANSWER_MS) -> Any:
        """Send it here and now; to be awaited for the answer, which raises KafkaError where there is none in time."""
        manager = self._coordinator._manager  # noqa: SLF001 - see above
        return manager.send(request, node_id=self._coordinator.coordinator_id, request_timeout_ms=within_ms)


def _taken(answer: Any) -> Any:
    """The answer; raises KafkaError where it is an error."""
    error = for_code(answer.error_code)
    if error is not NoError:
        raise error
    return answer
