-- llama2.c's checkpoint of 260 thousand weights gives llama2.c's own text.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local tokenizer = require "perilune.text.tokenizer"
local shared = require "shared"

-- karpathy/llama2.c, run -t 0 -n 200 (test_all.py) and -n 256 (the checkpoint's page)
local after_200 = 'Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she '
  .. 'saw a big, red ball. She wanted to play with it, but it was too high.\nLily\'s mom said, "Lily, let\'s go to the park." '
  .. 'Lily was sad and didn\'t know what to do. She said, "I want to play with your ball, but I can\'t find it."\nLily was sad '
  .. 'and didn\'t know what to do. She said, "I\'m sorry, Lily. I didn\'t know what to do."\nLily didn\'t want to help her mom, '
  .. 'so she'
local after_256 = after_200 .. ' said, "I\'m sorry, mom. I didn\'t know what to do." Her mom said, "Don\'t worry, Lily. We can help '
  .. 'you.'

TestStories = {}

function TestStories.test_greedy_text_is_that_of_llama2_c()
  local model = assert(models.load(shared.need "data/stories260k/stories260K.bin"))
  local tok = assert(tokenizer.load(shared.need "data/stories260k/tok512.bin"))
  for tokens, text in pairs { [200] = after_200, [256] = after_256 } do
    local out = model:generate(peri.tensor({ { tok.bos } }, "i64"), { max_new_tokens = tokens, greedy = true })
    lu.assertEquals((tok:decode(out.tokens:tolist()[1])), text)
  end
end

os.exit(lu.LuaUnit.run())
