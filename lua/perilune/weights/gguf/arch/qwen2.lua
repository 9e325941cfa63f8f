-- qwen2.lua - Qwen 2 and 2.5.
local decoder = require "perilune.weights.gguf.arch.decoder"

return {
  model_types = { "qwen2" }, class = "Qwen2ForCausalLM", turned = true,
  tensors = decoder.tensors,
  read = function (c, get, extra)
    local err = decoder.read(c, get, extra, "qwen2")
    c.use_sliding_window = c.sliding_window ~= nil
    return err
  end,
  write = function (put, c) return decoder.write(put, c) end,
}
