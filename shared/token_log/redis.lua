-- Token logs. ARGV[1] names a command; KEYS: the request's state hash and its log, in one slot. `append`, `states` and
-- `unfinished` take the keys of several requests, which on a Redis Cluster share a slot too.
-- The id of a log entry is its last seq + 1, so that a reader finds "after seq s" by range.

local state, log = KEYS[1], KEYS[2]
local commands = {}

-- More keys in the slot of the state, made from its name: `keepsake` is what its API keeps with the request; `prompt`
-- the token ids of the prompt for the next worker; `recording` what it takes to run the request again (both hashes,
-- since workers' users may not GET and SET). They are not among KEYS, since they often do not exist: while a Cluster
-- moves a slot, it answers TRYAGAIN to calls that name a key which is missing on the new node.
local function sibling(name) return (string.gsub(state, 'state$', name)) end

local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end

local MAX_RUNS = 16 -- as in marks.py

local function ended(status) return status == 'completed' or status == 'failed' or status == 'cancelled' end

local function whole(text) return text and string.match(text, '^%d+$') and #text <= 15 end

-- -> whether Headrace wrote this state, judged by the fields that every command depends on
local function intact(status, epoch, seq)
  return (ended(status) or status == 'queued' or status == 'running') and whole(epoch) and whole(seq)
end

local function forget() redis.call('DEL', state, log, sibling('keepsake'), sibling('prompt'), sibling('recording')) end

-- Remove a state that another program wrote, and wake its readers, which then find that the request is unknown.
local function remove_foreign(channel)
  if redis.call('EXISTS', state) == 1 then
    set_aside(state, state, 'not the state of a request')
    forget()
  end
  if channel then redis.call('PUBLISH', channel, '') end
end

-- -> the status of the request, if there is a state that Headrace wrote, else false; a foreign one is removed
local function known_status(channel)
  local found = redis.call('HMGET', state, 'state', 'epoch', 'seq')
  if intact(found[1], found[2], found[3]) then return found[1] end
  remove_foreign(channel)
  return false
end

-- -> what `act` returns for each of several requests, whose keys are KEYS; it gets the request's number
local function for_each(act)
  local replies = {}
  for i = 1, #KEYS / 2 do
    state, log = KEYS[2 * i - 1], KEYS[2 * i]
    replies[i] = act(i)
  end
  return replies
end

-- Append the entry before `next_seq`; with `begins` it may be the log's first. -> false if another program deleted or
-- extended the log
local function write(next_seq, payload, channel, begins)
  local id, reply = next_seq .. '-0', nil
  if begins then
    reply = redis.pcall('XADD', log, id, 'e', payload)
  else
    reply = redis.pcall('XADD', log, 'NOMKSTREAM', id, 'e', payload)
  end
  if type(reply) == 'table' and not string.find(reply.err, 'smaller', 1, true) then error(reply) end
  if type(reply) ~= 'string' then return false end
  redis.call('PUBLISH', channel, payload)
  return true
end

local function finish(status, ttl)
  redis.call('HSET', state, 'state', status, 'finished_at', now())
  local keep = redis.call('HGET', state, 'keep')
  ttl = whole(keep) and keep or ttl
  for _, key in ipairs({ state, log, sibling('keepsake'), sibling('recording') }) do redis.call('PEXPIRE', key, ttl) end
  redis.call('DEL', sibling('prompt'))
  for _, name in ipairs({ 'notify', 'watcher', 'carrier' }) do
    local channel = redis.call('HGET', state, name)
    if channel and string.find(channel, '^hr:') then redis.call('PUBLISH', channel, string.match(state, '{(.-)}')) end
  end
end

-- End a request from outside unless it has ended. -> its state from before, as a list and as a table
local function close(status, failure, channel, ttl)
  local before = redis.call('HGETALL', state)
  local known = {}
  for i = 1, #before, 2 do known[before[i]] = before[i + 1] end
  if intact(known.state, known.epoch, known.seq) and not ended(known.state) then
    local started, created = tonumber(known.started_at or ''), tonumber(known.created_at or '')
    local waited = started and created and started - created or 0
    local payload = string.format(
      '[%d,[],{"state":"%s","usage":{"prompt_tokens":%d,"completion_tokens":%d},"waited":%.4f%s}]',
      known.seq, status, tonumber(known.prompt_tokens or 0) or 0, known.seq, waited, failure ~= '' and ',"error":' .. failure or '')
    local next_seq = known.seq + 1
    if not write(next_seq, payload, channel, true) then
      redis.call('DEL', log)
      write(next_seq, payload, channel, true)
    end
    local reason = failure ~= '' and cjson.decode(failure).code or status
    redis.call('HSET', state, 'seq', next_seq, 'finish', reason)
    next_epoch(state, 'epoch')
    finish(status, ttl)
  end
  return before, known
end

-- ttl in ms, keepsake or '', then field, value …; among them `notify` and `watcher`, the channels that the end is
-- published on, and with a keepsake `keep`, the ttl of keepsake and answer after the end
-- -> 1, or 0 if it exists already; `seq` is the next seq to be written
function commands.create()
  if known_status() then return 0 end
  redis.call('HSET', state, 'state', 'queued', 'epoch', 0, 'seq', 0, unpack(ARGV, 4))
  redis.call('PEXPIRE', state, ARGV[2])
  if ARGV[3] ~= '' then redis.call('SET', sibling('keepsake'), ARGV[3], 'PX', ARGV[2]) end
  return 1
end

-- ttl in ms, 1 to create a missing log, source, notify, then field, value … of a log to be created
-- -> the state as field, value …; nil if it is unknown. A state with another source stays as it is. With a source,
-- `notify` is the channel of its carrier, which is notified beside the channels of the request's creator.
function commands.adopt()
  local here = known_status()
  local found = redis.call('HMGET', state, 'seq', 'source')
  if not here then
    if ARGV[3] ~= '1' then return nil end
    redis.call('HSET', state, 'state', 'queued', 'epoch', 0, 'seq', 0, unpack(ARGV, 6))
    redis.call('PEXPIRE', state, ARGV[2])
  end
  if ARGV[4] == '' then
    redis.call('HSET', state, 'notify', ARGV[5])
  elseif not found[2] or found[2] == ARGV[4] then
    redis.call('HSET', state, 'source', ARGV[4], 'carrier', ARGV[5])
  end
  return redis.call('HGETALL', state)
end

-- Count the workers that the request lost: one more if this is a later attempt than the last that acquired it.
-- On its last attempt a request runs apart from others like it, so that a token proves it innocent. If it has not
-- moved to another worker, its worker lives and only lost time, which is no evidence.
-- -> losses; and, if one was counted now and produced no token, how many of the last in a row ran nothing else
local function losses(attempt, most, alone, moved)
  local known = redis.call('HMGET', state, 'losses', 'attempt', 'seq', 'seq_then', 'alone', 'lost_alone')
  local count, before = tonumber(known[1] or 0) or 0, tonumber(known[2] or '')
  local lost_alone, evidence = tonumber(known[6] or 0) or 0, 0
  if before and attempt > before then
    local produced = tonumber(known[3]) > (tonumber(known[4] or 0) or 0)
    count = (produced and count == most - 1 and 0 or count) + 1
    lost_alone = known[5] == '1' and moved and lost_alone + 1 or 0
    evidence = produced and 0 or lost_alone
  end
  redis.call('HSET', state, 'losses', count, 'attempt', attempt, 'seq_then', known[3], 'alone', alone,
    'lost_alone', lost_alone)
  return count, evidence
end

-- Forget the marks of a run, so that those of a request that often changes its worker are bounded: the first run is kept,
-- and the last MAX_RUNS - 1. -> field and value of the marks of a run that begins (shared/token_log/marks.py)
local function begin_run(epoch, time, seq, logged_at)
  if epoch > MAX_RUNS then
    local gone = string.format('%d', epoch - MAX_RUNS + 1)
    redis.call('HDEL', state, 'run:' .. gone, 'mark:' .. gone, 'first:' .. gone)
  end
  return string.format('run:%d', epoch), table.concat({ time, ARGV[7], seq, logged_at or '-', ARGV[2] }, ' ')
end

-- owner, ttl in ms; for a request past its deadline: error as JSON, channel, result ttl in ms; then the number of this
-- attempt, how many workers it may lose, 1 if its worker runs nothing else, and its stay in the queue as JSON or ''
-- -> {lease epoch, time, log entries, workers lost, when the first worker started, next seq, how many of the last lost
-- in a row ran nothing else, prompt or nil}; nil if it has ended or is unknown
function commands.acquire()
  if not known_status(ARGV[5]) then return nil end
  local known = redis.call('HMGET', state, 'state', 'deadline', 'seq', 'owner', 'logged_at')
  if ended(known[1]) then return nil end
  if ARGV[10] ~= '' then redis.call('HSET', state, 'stay', ARGV[10]) end
  local deadline = tonumber(known[2] or '')
  if deadline and tonumber(now()) >= deadline then
    close('failed', ARGV[4], ARGV[5], ARGV[6])
    return nil
  end
  local epoch = next_epoch(state, 'epoch')
  local time = now()
  redis.call('HSET', state, 'owner', ARGV[2], 'state', 'running', begin_run(epoch, time, known[3], known[5]))
  redis.call('HSETNX', state, 'started_at', time)
  for _, key in ipairs({ state, log, sibling('keepsake'), sibling('prompt') }) do redis.call('PEXPIRE', key, ARGV[3]) end
  local lost, lost_alone = losses(tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9], known[4] ~= ARGV[2])
  local started, entries = redis.call('HGET', state, 'started_at'), redis.call('XRANGE', log, '-', '+')
  return { epoch, time, entries, lost, started, tonumber(known[3]), lost_alone, redis.call('HGET', sibling('prompt'), 'ids') }
end

-- its stay in the queue, as JSON
function commands.note_stay()
  if known_status() then redis.call('HSET', state, 'stay', ARGV[2]) end
end

-- lease epoch, owner, 1 if the worker runs nothing else -> 1 recorded, 0 refused
function commands.note_alone()
  local known = redis.call('HMGET', state, 'epoch', 'owner', 'state')
  if not is_held_by(ARGV[3], ARGV[2], known[2], known[1]) or ended(known[3]) then return 0 end
  redis.call('HSET', state, 'alone', ARGV[4])
  return 1
end

-- Append to the log of the request that `state` and `log` are now those of; the arguments are described at `append`.
-- -> 1 written (now, or by the same call before), 0 refused, 2 if another program deleted or extended the log
local function append_one(owner, payload, first, next_seq, epoch, rare)
  local channel = string.sub(state, 1, -6) .. 'live' -- in place of 'state'
  local known = redis.call('HMGET', state, 'state', 'epoch', 'owner', 'seq')
  local held = is_held_by(owner, epoch, known[3], known[2])
  if not (held and known[1] == 'running' and known[4] == first) then
    if not intact(known[1], known[2], known[4]) then
      remove_foreign(channel)
      return 0
    end
    return held and tonumber(next_seq) <= tonumber(known[4]) and 1 or 0
  end
  if next_seq == first then return 1 end
  local begins = first == '0'
  local prompt_tokens, mark, status, reason, prompt, recording
  if rare then prompt_tokens, mark, status, reason, prompt, recording = unpack(rare) end
  local ends = rare and status ~= ''
  local tokens = next_seq - (ends and 1 or 0)
  if tokens > tonumber(ARGV[2]) then return 0 end
  if not write(next_seq, payload, channel, begins) then return 2 end
  if not rare then
    redis.call('HSET', state, 'seq', next_seq)
    return 1
  end
  local fields, time = { 'seq', next_seq, 'prompt_tokens', prompt_tokens }, now()
  local function set(field, value) fields[#fields + 1], fields[#fields + 2] = field, value end
  if begins and tokens > 0 then set('first_token_at', time) end
  if reason ~= '' then set('finish', reason) end
  if mark ~= '' then
    set('mark:' .. epoch, time .. ' ' .. mark)
    set('logged_at', time)
    if not begins then redis.call('HSETNX', state, 'first:' .. epoch, time) end
  end
  redis.call('HSET', state, unpack(fields))
  if begins then redis.call('PEXPIRE', log, ARGV[3]) end
  if begins and prompt ~= '' then
    redis.call('HSET', sibling('prompt'), 'ids', prompt)
    redis.call('PEXPIRE', sibling('prompt'), ARGV[3])
  end
  if ends and recording ~= '' then redis.call('HSET', sibling('recording'), 'data', recording) end
  if ends then finish(status, ARGV[4]) end
  return 1
end

-- most tokens, ttl, result ttl in ms, owner, and in MessagePack an array of texts and a map. The array has the payloads of
-- the n requests whose keys are KEYS, then their n first seqs, the n seqs after the last, and the n lease epochs. The map
-- has, by the number of a request, for the first event, the last one, one with a finish reason and one with a mark: prompt
-- tokens, the mark of this run as JSON or '', status or '', finish reason or '', prompt or '', recording or ''.
-- The owner is compared too: a store that lost its last second may give an epoch a second time.
-- -> for each request what `append_one` returns
function commands.append()
  local args, rare = cmsgpack.unpack(ARGV[6])
  local n = #KEYS / 2
  return for_each(function(i)
    return append_one(ARGV[5], args[i], args[n + i], args[2 * n + i], args[3 * n + i], rare[i])
  end)
end

-- status, error as JSON or '', channel, result ttl in ms, format of control channels, job id, 1 to remove a request that
-- never ran -> the state from before as field, value …; nil if it is unknown
function commands.close()
  if not known_status(ARGV[4]) then return nil end
  local before, known = close(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
  if known.owner and not ended(known.state) then
    redis.call('PUBLISH', string.format(ARGV[6], known.owner), ARGV[7])
  end
  if ARGV[8] == '1' and known.state == 'queued' then forget() end
  return before
end

-- -> for each request its state, model, time of creation and source; nil if it has ended or is unknown
function commands.unfinished()
  return for_each(function()
    local status = known_status()
    return status and not ended(status) and redis.call('HMGET', state, 'state', 'model', 'created_at', 'source')
  end)
end

-- -> the status of each request; nil if it is unknown
function commands.states() return for_each(function() return known_status() end) end

-- -> the state as field, value …; empty if it is unknown
function commands.record() return known_status() and redis.call('HGETALL', state) or {} end

-- seq, most seqs -> {status, entries after that seq}; nil if the request is unknown. An entry larger than the page is
-- returned alone.
function commands.read()
  local status = known_status()
  if not status then return nil end
  local first, last = '(' .. (ARGV[2] + 1) .. '-0', (ARGV[2] + 1 + ARGV[3]) .. '-0'
  local entries = redis.call('XRANGE', log, first, last)
  if #entries == 0 then entries = redis.call('XRANGE', log, first, '+', 'COUNT', 1) end
  return { status, entries }
end

return commands[ARGV[1]]()
