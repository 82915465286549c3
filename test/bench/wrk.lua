-- Sends prepared requests in turn and prints one line of JSON. Arguments: method, path, file with one body a line (or
-- "-"), authorization, the prefix of a fresh Idempotency-Key a request (or "-"), the prefix of fresh event ids (or "-"):
-- four characters, which with six digits replace the ten of @EVENT-ID@.
local sent = 0
local requests = {}
local prefix
local idPrefix

-- The request in parts, between which something fresh is put.
local function split(request, mark)
  local parts, start = {}, 1
  while true do
    local from, to = request:find(mark, start, true)
    if not from then break end
    parts[#parts + 1] = request:sub(start, from - 1)
    start = to + 1
  end
  parts[#parts + 1] = request:sub(start)
  return parts
end

function init(args)
  local method, path, file, authorization = args[1], args[2], args[3], args[4]
  prefix = args[5] ~= "-" and args[5] or nil
  idPrefix = args[6] ~= "-" and args[6] or nil
  local headers = { ["Authorization"] = authorization }
  if prefix then headers["Idempotency-Key"] = "@KEY@" end
  if file == "-" then
    requests[1] = wrk.format(method, path, headers)
  else
    headers["Content-Type"] = "application/json"
    for line in io.lines(file) do
      local request = wrk.format(method, path, headers, line)
      if prefix then request = split(request, "@KEY@") end
      if idPrefix then request = split(request, "@EVENT-ID@") end
      requests[#requests + 1] = request
    end
  end
end

function request()
  sent = sent + 1
  local next = requests[sent % #requests + 1]
  if prefix then return table.concat(next, prefix .. sent) end
  if idPrefix then return table.concat(next, idPrefix .. string.format("%06d", sent)) end
  return next
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"requests":%d,"failed":%d,"seconds":%f,"p50Ms":%f,"p99Ms":%f}\n',
    summary.requests, failed, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
