-- complete.lua - perilune complete MODEL TEXT: continue a text, or fill the gap before --suffix.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"

local about = [[
Continues a text; - reads it from the standard input. With --suffix the model fills the gap between
the text and the suffix, where its tokenizer has the tokens for it.
]]

local function print_json(result, index)
  print(peri.json.encode {
    sample = index, text = result.text, reason = result.reason, tokens = peri.json.array(result.tokens),
    logprobs = peri.json.array(result.logprobs), prompt_tokens = result.prompt_tokens,
  })
end

return function (args)
  local spec = arguments.generation_flags {
    samples = { 1, "completions to make (--n is the same)", range = "[1, inf)" },
    suffix = { "", "text behind the gap" },
    echo = { false, "print the text before its completion" },
    regex = { "", "the completion matches this regular expression" },
    json = { false, "one JSON object a completion: text, tokens, logprobs, reason" },
  }
  local values, words = arguments.read("complete", "MODEL TEXT", 2, 2, spec, args, about)
  if not values then return words end
  local lm = arguments.load("complete", words[1], values, { rows = math.max(1, math.min(values.samples, 32)) })
  if not lm then return 1 end
  local text = words[2] == "-" and io.read "a" or words[2]
  local o = arguments.generation_options(values)
  o.samples = values.samples
  if values.suffix ~= "" then o.suffix = values.suffix end
  if values.regex ~= "" then o.regex = values.regex end
  local streams = values.samples == 1 and not values.json
  if streams then
    if values.echo then io.write(text) end
    function o.on_text(piece)
      io.write(piece)
      io.flush()
    end
  end
  if values.samples > 1 and lm:is_greedy(o) then
    io.stderr:write(("perilune complete: without --temperature answers are greedy: all %d are the same\n")
      :format(values.samples))
  end
  local ok, result = arguments.attempt("complete", lm.complete, lm, text, o)
  if not ok then return 1 end
  if streams then
    print()
    return 0
  end
  for i, sample in ipairs(result.samples or { result }) do
    if values.json then print_json(sample, i)
    else print(("--- %d ---\n%s%s"):format(i, values.echo and text or "", sample.text)) end
  end
  return 0
end
