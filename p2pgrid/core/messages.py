"""Frame types and their bodies: local socket (client and daemon), worker pipe (daemon and child), peers.

Every frame is `u32 length (big-endian) | msgpack [version, type, id, body]` (`core.wire`). `id` pairs a REQUEST with
its ANSWER or ERROR and is 0 elsewhere. Bodies are msgpack arrays in the order given here. New types and new trailing
elements are only ever added.
"""

# ---- client -> daemon -----------------------------------------------------------------------------------------------
HELLO = 1  # {"v": 1, "session": 16 bytes or b"", "pid", "program"}; answered by WELCOME
OPEN = 2  # [job16, spec]                      spec: core.record.Spec packed; idempotent
CODE = 3  # [job16, code_id16, union bytes]    a function; before the batches that use it
INPUT = 4  # [job16, lo, hi, batch bytes]      core.batch; re-sent byte for byte until acknowledged
CLOSE = 5  # [job16, n]                        the job has n tasks and gets no more
# seconds: how long the node looks for a job that nobody it reaches has (missing: WATCH_S); then STATE "unknown"
# show: bits of core.prints, what to show of tasks while they run: 1 lines as PRINTED, 2 progress
# stable: only results that are sealed on two disks (a grid of one: one)
WATCH = 6  # [job16, [lo, hi, lo, hi, …] already had, seconds, show, stable]   results flow as RESULT, then STATE
WATCH_S = 10.0
CANCEL = 7  # [job16, [lo, hi, …] or None]     None: the whole job
# index: the reader holds later results and waits for this one, which comes whatever is under way; nil or missing: none
GOT = 8  # [job16, bytes, index]               credit: that many result bytes were taken in
REQUEST = 9  # [verb, {arguments}]             see REQUESTS
GOODBYE = 10  # []                             the client leaves on purpose
UNWATCH = 11  # [job16]
REFS = 12  # [job16, [[id, size, [holder, …]], …]]   Refs in batches after it: the job needs them until it has ended
# only from a worker's process, by way of its door: its task `index` of that job waits for tasks [lo, hi, …] of others
# that it has started; may_run: it runs some of these itself meanwhile, as W_RUN with the fifth element
WAIT = 13  # [number, job16, index, may_run, [[job16, [lo, hi, …]], …]]
WAITED = 14  # [number]                        it waits no longer

# ---- daemon -> client -----------------------------------------------------------------------------------------------
WELCOME = 32  # {"v", "id", "name", "grid", "slots", "nodes", "version", "python": [major, minor], "embedded", "pid"}
ACK = 33  # [job16, what, lo]                  fsynced; "spec" "code" "refs" "input" (lo: the batch) "close" "cancel"
RESULT = 34  # [job16, [[lo, hi, shape, data, node name, attempt], …]]     see node.events.Outcome
STATE = 35  # [job16, state, reason]           the end: done failed cancelled abandoned; "unknown": no such job here
NOTICE = 36  # [job16, text]                   a line for the person: why tasks wait
ANSWER = 37  # answer of a REQUEST
ERROR = 38  # {"code", "message", "next"}      of a REQUEST (id), or of the connection (id 0)
REFUSED = 39  # [job16, what, lo, {"code", "message", "next"}]   an OPEN, CODE, INPUT, CLOSE or WATCH was not accepted
CANCELLED = 41  # [job16, [lo, hi, …]]         these tasks will have no result: somebody cancelled them, the job goes on
# lines: [index, 1 output | 2 errors, text, level or 0, name of the logger], `more` were left out; said: [index, done,
# total or -1, text] of pg.progress. Nothing of it is owed: a client that does not read it loses it
PRINTED = 43  # [job16, node name, lines, more, said]

REQUESTS = {
    "status": "{}",
    "jobs": "{mine: session or None}",
    "show": "{target}",
    "explain": "{target}",
    "logs": "{target}",
    "cancel": "{target}",
    "forget": "{target} -> {forgotten: jobs}; cancels what still runs",
    "keep": "{target, until: unix seconds} -> {expires}; an expiry only grows",
    "find": "{target} -> {job: 16 bytes, lo, hi} of an id, prefix, name or `last`",
    "drain": "{target: node, off, stop, deadline: seconds, look} -> {draining, drained, running, serves, copies}",
    "stop": "{}  (embedded or by `p2pgrid stop`)",
    "members": "{} -> {members: [{id, name, status, addresses, slots, roles, pythons, version, facts}]}",
    "top": "{} -> {nodes: [{id, name, status, slots, busy, queued, jobs, done, messages}], jobs: as in `jobs`}",
    "invite": "{roles: text, expires: seconds, member_until: unix seconds or 0} -> {invite, roles, join_until, ...}",
    "join": "{invite, leave: bool} -> {grid, id, name, reached: how many answered, joined: False if it was in it}",
    "leave": "{} -> {left: name of the grid, grid: name of the new one}",
    "promote": "{target: node, roles: text} -> {id, name, roles}",
    "revoke": "{target: node or invite, with_admitted: bool} -> {revoked, kept, cut: [{id, name}]}",
    "grid": "{} -> {id, name, admins, members, invites, revoked, warnings}",
    "export": "{passphrase} -> {text, key}",
    "recover": "{text, passphrase} -> {roles}",
    "arena": "{token: 16 bytes} -> no frame: 12 bytes and the descriptor of the shared memory (core.mapped.handed)",
    "place": "{token, key: 16 bytes, size} -> {offset}: where to write an object",
    "written": "{token, key, id, manifest} -> {}: it is whole, and pinned until `let_go` or the end of that connection",
    "attach": "{token} -> {}: results that are objects come with their place (core.large) over this connection",
    "want": "{token, id (or key), holders} -> {offset, size}: it stays there until `let_go` says that its view ended",
    "let_go": "{token, views: [[id, times], …], refs: [id, …], keys: [key, …] given up, leave, session} -> {}",
    "workers": "{} -> [{worker, pid, state, job, index}]",
}

# ---- daemon -> worker child -----------------------------------------------------------------------------------------
W_CODE = 64  # [code_id16, union bytes]
W_BLOB = 65  # [job16, key, bytes]             a packed list of inputs; child keeps the last W_BLOBS of them
# segment: [lo, hi, fn, shape, data or None (blob), offset, key]; inside: nil, or [run, index] of a task of this child
# that waits (WAIT) and below which it is to run: given back unstarted where that does not wait any more
W_RUN = 66  # [run, job16, context, [segment, …], inside]
W_AT = 67  # [number of the W_NEED or W_PLACE, offset, size, None or {"code", "message", "next"}, size of the memory]
W_BLOBS = 4
W_TREE = 72  # [tree id, folder, union bytes or None: it is there]      once in a child's life, before what needs it

# ---- worker child -> daemon -----------------------------------------------------------------------------------------
W_READY = 80  # {"pid", "python": [major, minor, micro]}
W_DONE = 81  # [run, [outcome, …], final, [[lo, hi], …] returned, busy_s, [], unfit]   output: node/workers_output.py
W_NEED = 82  # [number, id, [holder, …]]     an object, mapped; the first W_AT brings the descriptor of the memory
W_LET_GO = 83  # [[id, times], …]             views that ended
W_PLACE = 84  # [number, key16, size]         room for a large result; answered by W_AT as well

# ---- peer <-> peer (control stream) ---------------------------------------------------------------------------------
# seconds: how many slot-seconds of work the holder would like to have queued; it knows best how far it is
P_WANT = 96  # [rid, free slots, speed, seconds]  a holder asks a keeper for work
# A function that the holder has of this job is left out; b"" for a batch: the packed run that you have.
P_GRANT = 97  # [rid, job16, name, [[lo, hi, attempt, alone], …], [[code_id, union], …], [[lo, hi, batch], …]]
P_GRANT_ACK = 98  # [rid, claim seq]
# hints = [[node id, seconds], …]: at whom how much work waits
P_NONE = 99  # [rid, hints]                       nothing for you now; you are a waiter
# handed = [[thief, [lo, hi, …]], …]: ranges that it handed over; they are covered until their thief claims them
P_CLAIM = 100  # [inc, seq, interval_s, [[job16, [lo, hi, …], [running lo, hi, …], handed], …], part, parts]
P_RESULTS = 101  # [[job16, [inc, no], attempt, [outcome, …], [[index, output], …], busy_s], …]
P_RESULTS_ACK = 102  # [[job16, inc, no], …]      fsynced at the keeper
P_DROP = 103  # [job16, [lo, hi, …] or None]      done elsewhere or cancelled: stop and forget these
P_WORK = 104  # []                                there is uncovered work here: ask
P_RETURN = (
    105  # [job16, [lo, hi, …], why, lacks]   ranges given back unstarted (unfit, draining); lacks: send all next time
)
P_ASK = 106  # [rid, verb, {arguments}]           a request of a client at another node (see ASKED); rid as in P_WANT
P_ANSWER = 107  # [rid, {answer}]
P_ERROR = 108  # [rid, {"code", "message", "next"}]
P_COMING = 109  # [rid]                           a large grant is under way on a bulk stream: wait for it
# between holders: work that a third node keeps; rates = [[code_id, seconds per task], …], has = [[job16, [code_id, …],
# [lo, hi, …]], …]: functions and packed runs of which b"" will do
P_STEAL = 144  # [rid, rates, has]                I am idle: give me some of what you have not started
P_HANDOVER = 145  # [rid, keeper id, …]           then as in P_GRANT; you hold it, once you said P_HANDED
P_HANDED = 146  # [rid, taken]                    I hold it, and told its keeper; or I do not want it
P_NOTHING = 147  # [rid, hints]                   nothing (more) for you; what you keep yourself came by P_RETURN
P_LIFELINE = 148  # [rid, seconds, rates, has]    if you have more than you need within that time: hand it over unasked
# what tasks print while they run (core.prints); nothing of it is owed
P_SHOW = 180  # [job16, show]                     to holders: what is watched of this job from now on, as in WATCH
P_PRINTED = 181  # [job16, lines, more, said, [[index, last 64 KiB], …]]   to the keeper; the last are to be kept

OBJECT_REQUESTS = frozenset({"arena", "attach", "place", "written", "want", "let_go"})
"""`arena` goes over a connection of its own: when that ends, so do pins and views (node/sharing.py)."""

ASKED = ("jobs", "show", "explain", "cancel", "logs", "load", "find", "forget", "keep", "drain")
"""What a node answers for a client at another node, about its own jobs."""

# ---- a reader at one node, the job at another (node/relaying.py) ---------------------------------------------------
P_READ = 160  # [rid, job16, [lo, hi, …] already had, stable]   a client of mine reads this job of yours, as by WATCH
P_TOLD = 161  # [rid, no, kind, body]           frame number no for that reader: RESULT CANCELLED NOTICE STATE REFUSED
P_TAKEN = 162  # [rid, bytes, index]            as GOT
P_UNREAD = 163  # [rid]                         it reads no more

# ---- the list of jobs (node/listing.py); entry: core.listed ---------------------------------------------------------
P_JOBS = 164  # [[entry, …]]                    news
P_JOBS_DIGEST = 165  # [8 bytes over all, or 8 bytes for each of core.member.BUCKETS]
P_JOBS_RECORDS = 166  # [[bucket, …], [entry, …]]   all I know in buckets that differ; send what is newer

# ---- membership (control stream); read by `core.member_shapes.from_neighbour` ---------------------------------------
# `accused`: the incarnation of the receiver that the sender holds for suspect, dead or left, else 0: it can refute.
# update = [node id, incarnation, status, by, card or None]   status and card: core.member; by: who says so
P_PING = 110  # [seq, incarnation of the sender, accused]      also a leaf's heartbeat
P_ACK = 111  # [seq, incarnation of the probed, accused]       seq of the PING, or of the PING_REQ it answers
P_PING_REQ = 112  # [seq, subject, accused]                    probe it for me
P_NACK = 113  # [seq]                                          I am here, the subject has not answered me so far
P_GOSSIP = 114  # [[update, …]]                                news
P_DIGEST = 115  # [hashes]                                     anti-entropy: 8 bytes for each of core.member.BUCKETS
P_RECORDS = 116  # [[bucket, …], [update, …]]                  all I know in buckets that differ; send what is newer
P_CLOCK = 117  # [seq]                                         what time is it?
P_CLOCK_IS = 118  # [seq, unix time]

# ---- the connection itself (control stream); the shell's own: no machine sees them ----------------------------------
L_HELLO = 120  # {"v": 1, "version", "card": card as in update}     first on every control stream
L_GOODBYE = (
    121  # [why, bulk frames sent before]  "stopping" "leaving" "replaced" "dropped": no failure, no redial storm
)
L_REVOCATIONS = 122  # [[revocation, …]]           core.revocation, packed; right after HELLO, then as news
L_REVOKED = 123  # [digest]                        anti-entropy: 32 bytes over all revocations ever heard
L_CHAIN = 124  # [chain]                           one more chain for you (a joiner's node link, a promotion)
L_SHOW = 125  # [chain]                            what I show from now on, instead of that of the handshake
L_PING = 126  # [seq]                              measures the control round trip while bulk is under way
L_PONG = 127  # [seq]
L_UNKNOWN = 128  # [version, kind]                I do not know this; once per kind, and never the answer to itself

L_DIAL_ME = 150  # [nonce, [address, …]]         tell me which of these lead to me; see node/reachability.py
L_DIALLED = 151  # [nonce, [address, …] or None, host]   these do (None: I did not try); I see you come from that host

# ---- copies of job records, between keepers (node/replicas.py); read by `core.keeper_shapes` -------------------------
# tags: 8 bytes for each row, one after the other; buckets: which of 256, None: all
P_ROWS = 168  # [no, [[job16, kind, key, meta, value], …]]   rows for you to keep
P_SYNCED = 169  # [[no, …], [no, …]]                the rows of these frames are fsynced here; of those not taken
P_COPIES = 170  # [[job16, digest16, serves, asks], …]       my copies of records; asks: say how yours is
P_BUCKETS = 171  # [job16, [[bucket, digest16], …]]  mine differs from yours: which buckets?
P_TAGS = 172  # [job16, buckets, tags]              what I have in these: give me the rest, and ask for what you lack
P_WANTED = 173  # [job16, tags]                     give me these rows
P_KEEPER = 174  # [[job16, node id], …]             who serves these jobs from now on: claim there, deliver there
P_RUNS = 175  # [[job16, [lo, hi, …]], …]           what I am about to run of jobs I serve that cost a node its life

# ---- objects (node/objects.py; those with bytes in them on a bulk stream); read by `core.shapes.of_objects` ----------
# id: 33 bytes (core.pieces); pieces: [lo, hi, …] or, where it says so, None for all of them
O_FIND = 130  # [[id, …]]                          who has these? Answered by HAVE or LACK for each, and HAVE as news
O_HAVE = 131  # [id, size, pieces or None]         I have these pieces of it: replaces what I said before
O_LACK = 132  # [id, pieces or None]               I do not have these (None: nothing of it, any more)
O_LIST = 133  # [id]                               send me its manifest
O_LISTED = 134  # [id, manifest]                   its pieces; the id proves it
O_WANT = 135  # [id, pieces]                       send me these
O_PIECE = 136  # [id, piece, bytes]                the shell verifies and writes it: no machine sees the bytes
O_BUSY = 137  # [id, pieces, seconds]              not these, not now: ask again in so many seconds, or another
O_SKIP = 138  # [id, pieces]                       these are not wanted any more: came from elsewhere
O_COPY = 139  # [id, copies, [holder, …]]          so many shall have it; those do or were asked. Keep it as well
O_FREE = 140  # [id]                               nobody needs the copies any more
