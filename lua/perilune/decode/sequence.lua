-- sequence.lua - a request to perilune.decode.engine, the sequences that it is answered with, and how they end. One
-- that fails ends alone.
local M = {}

--- One completion being made. reason: nil while it runs, then "stop" (a stop token, on_token or the
--- end of a constraint), "length" (max_new_tokens or the model's context), "cancelled" or "error".
--- @class perilune.decode.Sequence
--- @field request perilune.decode.Request
--- @field index integer  which sample of the request
--- @field tokens integer[]?  the stop token included; of a batch nil: Engine:listen hears of them
--- @field count integer?  of tokens, once it has ended
--- @field entered integer?  the turn before its first token: it has one for each turn since
--- @field number integer?  row of the output, of a batch: (place - 1) * samples + index
--- @field logprobs number[]?  of requests that were submitted one by one
--- @field top table[]?  with top_logprobs: of each token a list of { id =, logprob = }
--- @field reason string?
--- @field row table  what its policy knows of it: accept(id) -> ended
--- @field source perilune.decode.Sequence?  whose keys and values it goes on from, where not its own

--- @class perilune.decode.Request
--- @field ids integer[]?  the prompt; of a batch: `batch` and `place`, the row there
--- @field sequences perilune.decode.Sequence[]
--- @field done boolean
--- @field error any?  what it failed with
--- @field cached_tokens integer?  prompt tokens that the prefix cache had; nil before it was read

--- End a sequence.
--- @param s perilune.decode.Sequence
--- @param reason string
function M.finish(s, reason)
  if s.ended then return end
  local request = s.request
  local engine = request.engine
  s.reason, s.ended, s.count = reason, true, s.entered and engine.turns - s.entered or 0
  engine.changed = true
  request.left = request.left - 1
  request.done = request.left == 0
end

--- A request fails with all its sequences.
--- @param request perilune.decode.Request
--- @param message any
function M.fail(request, message)
  request.engine.failed = request.engine.failed or request
  request.error = message == nil and "an error without a message: error(nil)" or message
  for _, s in ipairs(request.sequences) do M.finish(s, "error") end
end

--- Whether an error is an interrupt, which is everyone's.
--- @param message any
--- @return boolean
function M.is_interrupt(message) return type(message) == "string" and message:find "interrupted$" ~= nil end

--- fn(...), whose errors are those of one request.
--- @param request perilune.decode.Request
--- @param fn function
--- @return boolean ok
function M.attempt(request, fn, ...)
  local ok, message = pcall(fn, ...)
  if ok then return true end
  if M.is_interrupt(message) then error(message, 0) end
  M.fail(request, message)
  return false
end

return M
