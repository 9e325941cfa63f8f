/*
** misuse_calls.h - a call of every function of perilune.h that takes a pointer, for test_misuse.c: NN marks
** a pointer that may not be NULL, MAY one that may, ST a status, VO and NO what has none (NO answers 0,
** false, NULL or -1).
*/
#ifndef misuse_calls_h
#define misuse_calls_h

/* function, what it answers, a call with every pointer marked. */
#define CALLS(ST, VO, NO)                                                                        \
  VO(peri_options_init, peri_options_init(NN(&options)))                                         \
  ST(peri_open, peri_open(MAY(NULL), NN(&ctx2)))                                                 \
  VO(peri_close, peri_close(NN(ctx2)))                                                           \
  VO(peri_message, (void)peri_message(NN(ctx)))                                                  \
  VO(peri_interrupt, peri_interrupt(NN(ctx)))                                                    \
  VO(peri_interrupt_clear, peri_interrupt_clear(NN(ctx)))                                        \
  NO(peri_interrupt_request, peri_interrupt_request(NN(ctx)))                                    \
  VO(peri_log, peri_log(NN(ctx), PERI_LOG_ERROR, NN("%s"), "x"))                                 \
  VO(peri_allocator, peri_allocator(NN(ctx), MAY(&alloc_fn), MAY(&alloc_ud)))                    \
  ST(peri_memory_stats, peri_memory_stats(NN(ctx), NN(&memory)))                                 \
  VO(peri_memory_reset_peak, peri_memory_reset_peak(NN(ctx)))                                    \
  VO(peri_memory_trim, peri_memory_trim(NN(ctx)))                                                \
  VO(peri_threads, (void)peri_threads(NN(ctx)))                                                  \
  VO(peri_simd_name, (void)peri_simd_name(NN(ctx)))                                              \
  VO(peri_dtype_block, (void)peri_dtype_block(PERI_F32, NN(&size)))                              \
  NO(peri_dtype_parse, peri_dtype_parse(NN("f32"), NN(&dt)))                                     \
  ST(peri_empty, peri_empty(NN(ctx), PERI_F32, 1, NN(n1), NN(&made)))                            \
  ST(peri_scalar, peri_scalar(NN(ctx), PERI_F32, 1, NN(&made)))                                  \
  NO(peri_nbytes, peri_nbytes(NN(t)))                                                            \
  ST(peri_from, peri_from(NN(ctx), PERI_F32, 1, NN(n1), NN(floats), NN(&made)))                  \
  ST(peri_import, peri_import(NN(ctx), PERI_F32, 1, NN(n1), MAY(NULL),                           \
                              NN((void *)(uintptr_t)floats), NULL, NULL, NN(&made)))             \
  NO(peri_retain, peri_retain(NN(t)))                                                            \
  VO(peri_release, peri_release(NN(made)))                                                       \
  NO(peri_ctx_of, peri_ctx_of(NN(t)))                                                            \
  NO(peri_ndim, peri_ndim(NN(t)))                                                                \
  NO(peri_shape, peri_shape(NN(t)))                                                              \
  NO(peri_strides, peri_strides(NN(t)))                                                          \
  VO(peri_dtype_of, (void)peri_dtype_of(NN(t)))                                                  \
  NO(peri_numel, peri_numel(NN(t)))                                                              \
  NO(peri_is_dense, peri_is_dense(NN(t)))                                                        \
  NO(peri_data, peri_data(NN(t)))                                                                \
  ST(peri_item, peri_item(NN(t), 0, NN(&num)))                                                   \
  ST(peri_copy_out, peri_copy_out(NN(t), NN(buf), 8))                                            \
  NO(peri_op_find, peri_op_find(NN("neg")))                                                      \
  VO(peri_op_name, (void)peri_op_name(NN(neg)))                                                  \
  VO(peri_op_signature, (void)peri_op_signature(NN(neg)))                                        \
  VO(peri_op_doc, (void)peri_op_doc(NN(neg)))                                                    \
  NO(peri_op_flags, peri_op_flags(NN(neg)))                                                      \
  NO(peri_op_params, peri_op_params(NN(neg)))                                                    \
  NO(peri_op_param, peri_op_param(NN(neg), 0))                                                   \
  NO(peri_op_outputs, peri_op_outputs(NN(neg)))                                                  \
  NO(peri_op_attrs, peri_op_attrs(NN(sum_op)))                                                   \
  ST(peri_apply, peri_apply(NN(ctx), NN(sum_op), 1, NN(list), 2, NN(attrs), 1, NN(out)))         \
  ST(peri_apply_inplace, peri_apply_inplace(NN(ctx), NN(neg), 1, NN(list), 0, MAY(NULL)))        \
  ST(peri_share, peri_share(NN(t), PERI_SHARE_DEFAULT, NN(&handle)))                             \
  NO(peri_shared_retain, peri_shared_retain(NN(handle)))                                         \
  VO(peri_shared_release, peri_shared_release(NN(handle)))                                       \
  ST(peri_take, peri_take(NN(ctx), NN(handle), NN(&made)))                                       \
  NO(peri_sharing, peri_sharing(NN(t)))                                                          \
  ST(peri_post, peri_post(NN(ctx), NN(&task)))                                                   \
  ST(peri_post_run, peri_post_run(NN(ctx), 0, MAY(&ia)))                                         \
  VO(peri_post_notify, peri_post_notify(NN(ctx), NULL, NULL))                                    \
  ST(peri_apply_named, peri_apply_named(NN(ctx), NN("neg"), 2, NN(args)))                        \
  ST(peri_set_requires_grad, peri_set_requires_grad(NN(t), false))                               \
  NO(peri_requires_grad, peri_requires_grad(NN(leaf)))                                           \
  NO(peri_is_leaf, peri_is_leaf(NN(leaf)))                                                       \
  NO(peri_grad_enabled, peri_grad_enabled(NN(ctx)))                                              \
  NO(peri_set_grad_enabled, peri_set_grad_enabled(NN(ctx), true))                                \
  ST(peri_backward, peri_backward(NN(ctx), NN(root), MAY(NULL), true))                           \
  ST(peri_gradients, peri_gradients(NN(ctx), NN(root), MAY(NULL), 1, NN(&leaf), false, NN(out))) \
  NO(peri_grad, peri_grad(NN(leaf)))                                                             \
  ST(peri_set_grad, peri_set_grad(NN(leaf), MAY(NULL)))                                          \
  ST(peri_detach, peri_detach(NN(t), NN(&made)))                                                 \
  VO(peri_set_anomaly, peri_set_anomaly(NN(ctx), false))                                         \
  ST(peri_record_custom,                                                                         \
     peri_record_custom(NN(ctx), NN("c"), 1, NN(&leaf), 1, NN(&t), NN(no_vjp), NULL, NULL))      \
  VO(peri_rng_set, peri_rng_set(NN(ctx), (peri_rng){ 0, 0 }))                                    \
  NO(peri_rng_get, peri_rng_get(NN(ctx)).seed)                                                   \
  VO(peri_philox, peri_philox(NN(four), NN(four), NN(words)))                                    \
  ST(peri_file_read, peri_file_read(NN(ctx), NN("/dev/null"), 0, NN(&data), NN(&size)))          \
  VO(peri_file_free, peri_file_free(NN(ctx), MAY(NULL), 0))                                      \
  ST(peri_file_write, peri_file_write(NN(ctx), NN(spare), NN("x"), 1))                           \
  ST(peri_file_append, peri_file_append(NN(ctx), NN(spare), NN("x"), 1))                         \
  ST(peri_make_folder, peri_make_folder(NN(ctx), NN(dir)))                                       \
  ST(peri_remove_tree, peri_remove_tree(NN(ctx), NN(spare)))                                     \
  ST(peri_rename, peri_rename(NN(ctx), NN(spare), NN(spare)))                                    \
  ST(peri_list_folder, peri_list_folder(NN(ctx), NN(dir), NN(&names_out), NN(&size)))            \
  ST(peri_safetensors_open, peri_safetensors_open(NN(ctx), NN(spare), true, NN(&st2)))           \
  ST(peri_safetensors_parse, peri_safetensors_parse(NN(ctx), NN("12345678"), 8, NN(&st2)))       \
  VO(peri_safetensors_close, peri_safetensors_close(NN(st2)))                                    \
  NO(peri_safetensors_count, peri_safetensors_count(NN(st)))                                     \
  NO(peri_safetensors_at, peri_safetensors_at(NN(st), 0).name)                                   \
  NO(peri_safetensors_find, peri_safetensors_find(NN(st), NN("a")))                              \
  NO(peri_safetensors_pairs, peri_safetensors_pairs(NN(st)))                                     \
  NO(peri_safetensors_pair, peri_safetensors_pair(NN(st), 0).key)                                \
  ST(peri_safetensors_tensor, peri_safetensors_tensor(NN(st), 0, NN(&made)))                     \
  ST(peri_safetensors_create,                                                                    \
     peri_safetensors_create(NN(ctx), NN(spare), 1, NN(entries), 1, NN(pairs), NN(&stw2)))       \
  NO(peri_safetensors_next, peri_safetensors_next(NN(stw)))                                      \
  ST(peri_safetensors_write, peri_safetensors_write(NN(stw), NN(t)))                             \
  ST(peri_safetensors_commit, peri_safetensors_commit(NN(stw2)))                                 \
  VO(peri_safetensors_abort, peri_safetensors_abort(NN(stw2)))                                   \
  ST(peri_safetensors_save,                                                                      \
     peri_safetensors_save(NN(ctx), NN(spare), 1, NN(names), NN(list), 1, NN(pairs)))            \
  ST(peri_gguf_open, peri_gguf_open(NN(ctx), NN(spare), true, NN(&gg2)))                         \
  ST(peri_gguf_parse, peri_gguf_parse(NN(ctx), NN("GGUF"), 4, NN(&gg2)))                         \
  VO(peri_gguf_close, peri_gguf_close(NN(gg2)))                                                  \
  NO(peri_gguf_version, peri_gguf_version(NN(gg)))                                               \
  NO(peri_gguf_alignment, peri_gguf_alignment(NN(gg)))                                           \
  NO(peri_gguf_nvalues, peri_gguf_nvalues(NN(gg)))                                               \
  NO(peri_gguf_at, peri_gguf_at(NN(gg), 0).key.s)                                                \
  NO(peri_gguf_find, peri_gguf_find(NN(gg), NN("n")))                                            \
  NO(peri_gguf_int, peri_gguf_int(NN(gg), NN(&value), 0, NN(&whole)))                            \
  NO(peri_gguf_num, peri_gguf_num(NN(gg), NN(&value), 0, NN(&num)))                              \
  NO(peri_gguf_string, peri_gguf_string(NN(gg), NN(&value), NN(&gtext)))                         \
  NO(peri_gguf_next, peri_gguf_next(NN(gg), NN(&value), NN(&cursor), NN(&item)))                 \
  ST(peri_gguf_get_int, peri_gguf_get_int(NN(gg), NN("n"), NN(&whole)))                          \
  ST(peri_gguf_get_num, peri_gguf_get_num(NN(gg), NN("n"), NN(&num)))                            \
  ST(peri_gguf_get_bool, peri_gguf_get_bool(NN(gg), NN("n"), NN(&flag)))                         \
  ST(peri_gguf_get_text, peri_gguf_get_text(NN(gg), NN("n"), NN(&gtext)))                        \
  ST(peri_gguf_get_array, peri_gguf_get_array(NN(gg), NN("n"), PERI_GGUF_I64, NN(&item)))        \
  NO(peri_gguf_count, peri_gguf_count(NN(gg)))                                                   \
  NO(peri_gguf_entry_at, peri_gguf_entry_at(NN(gg), 0).name.s)                                   \
  NO(peri_gguf_find_tensor, peri_gguf_find_tensor(NN(gg), NN("a")))                              \
  ST(peri_gguf_tensor, peri_gguf_tensor(NN(gg), 0, NN(&made)))                                   \
  ST(peri_gguf_create, peri_gguf_create(NN(ctx), NN(spare), NN(&ggw2)))                          \
  ST(peri_gguf_put, peri_gguf_put(NN(ggw), NN("k"), PERI_GGUF_I32, false, 1, NN(&whole)))        \
  ST(peri_gguf_declare, peri_gguf_declare(NN(ggw), NN("a"), PERI_F32, 1, NN(n1)))                \
  ST(peri_gguf_write, peri_gguf_write(NN(ggw), NN(t)))                                           \
  ST(peri_gguf_commit, peri_gguf_commit(NN(ggw2)))                                               \
  VO(peri_gguf_abort, peri_gguf_abort(NN(ggw2)))                                                 \
  ST(peri_npy_load, peri_npy_load(NN(ctx), NN(spare), NN(&made)))                                \
  ST(peri_npy_save, peri_npy_save(NN(ctx), NN(spare), NN(t)))                                    \
  ST(peri_npz_open, peri_npz_open(NN(ctx), NN(spare), NN(&npz2)))                                \
  VO(peri_npz_close, peri_npz_close(NN(npz2)))                                                   \
  NO(peri_npz_count, peri_npz_count(NN(npz)))                                                    \
  VO(peri_npz_name, (void)peri_npz_name(NN(npz), 0, NN(&size)))                                  \
  ST(peri_npz_tensor, peri_npz_tensor(NN(npz), 0, NN(&made)))                                    \
  ST(peri_npz_save, peri_npz_save(NN(ctx), NN(spare), 1, NN(names), NN(list)))                   \
  ST(peri_idx_load, peri_idx_load(NN(ctx), NN(spare), NN(&made)))                                \
  ST(peri_lines_open, peri_lines_open(NN(ctx), NN(spare), 0, NN(&lines2)))                       \
  ST(peri_lines_next, peri_lines_next(NN(lines), NN(&line), NN(&size)))                          \
  NO(peri_lines_number, peri_lines_number(NN(lines)))                                            \
  VO(peri_lines_close, peri_lines_close(NN(lines2)))                                             \
  ST(peri_checkpoint_begin, peri_checkpoint_begin(NN(ctx), NN(spare), NN(&cp2)))                 \
  NO(peri_checkpoint_path, peri_checkpoint_path(NN(cp)))                                         \
  ST(peri_checkpoint_commit, peri_checkpoint_commit(NN(cp), NN("x"), 0))                         \
  VO(peri_checkpoint_abort, peri_checkpoint_abort(NN(cp2)))                                      \
  ST(peri_checkpoint_latest, peri_checkpoint_latest(NN(ctx), NN(dir), NN(buf), sizeof buf))      \
  ST(peri_checkpoint_verify, peri_checkpoint_verify(NN(ctx), NN(spare), MAY(NULL)))              \
  ST(peri_lock_take, peri_lock_take(NN(ctx), NN(spare), NN(&lock2)))                             \
  VO(peri_lock_drop, peri_lock_drop(NN(lock2)))                                                  \
  ST(peri_tfevents_open, peri_tfevents_open(NN(ctx), NN(spare), NN(&events2)))                   \
  ST(peri_tfevents_scalar, peri_tfevents_scalar(NN(events), NN("a"), 1, 1, 1))                   \
  ST(peri_tfevents_event, peri_tfevents_event(NN(events), NN("a"), 1))                           \
  VO(peri_tfevents_close, peri_tfevents_close(NN(events2)))                                      \
  VO(peri_python_options_init, peri_python_options_init(NN(&python)))                            \
  ST(peri_env_python, peri_env_python(NN(ctx), NN("x"), MAY(NULL), MAY(NULL), NN(&env2)))        \
  ST(peri_frame_open, peri_frame_open(NN(ctx), NN(&frame2)))                                     \
  VO(peri_frame_close, peri_frame_close(NN(frame2)))                                             \
  VO(peri_frame_size, peri_frame_size(NN(frame), 4, 4))                                          \
  VO(peri_frame_background, peri_frame_background(NN(frame), 1))                                 \
  VO(peri_frame_rect, peri_frame_rect(NN(frame), 1, 1, 1, 1, 1))                                 \
  VO(peri_frame_circle, peri_frame_circle(NN(frame), 1, 1, 1, 1))                                \
  VO(peri_frame_line, peri_frame_line(NN(frame), 1, 1, 2, 2, 1, 1))                              \
  VO(peri_frame_polygon, peri_frame_polygon(NN(frame), 3, NN(corners), 1))                       \
  VO(peri_frame_label, peri_frame_label(NN(frame), 1, 1, 8, NN("a"), 1))                         \
  VO(peri_frame_image, peri_frame_image(NN(frame), 1, 1, 1, 1, 1, 1, NN(pixel)))                 \
  ST(peri_frame_check, peri_frame_check(NN(frame)))                                              \
  NO(peri_frame_width, peri_frame_width(NN(frame)))                                              \
  NO(peri_frame_height, peri_frame_height(NN(frame)))                                            \
  ST(peri_frame_pixels, peri_frame_pixels(NN(frame), 4, 4, NN((uint8_t *)buf)))                  \
  ST(peri_frame_tensor, peri_frame_tensor(NN(frame), 4, 4, NN(&made)))                           \
  ST(peri_png_save, peri_png_save(NN(ctx), NN(spare), NN(image)))                                \
  ST(peri_gif_create, peri_gif_create(NN(ctx), NN(spare), 10, 0, NN(&gif2)))                     \
  ST(peri_gif_add, peri_gif_add(NN(gif), NN(image)))                                             \
  VO(peri_gif_abort, peri_gif_abort(NN(gif2)))                                                   \
  ST(peri_svg_create, peri_svg_create(NN(ctx), NN(spare), 10, 0, NN(&svg2)))                     \
  ST(peri_svg_add, peri_svg_add(NN(svg), NN(frame)))                                             \
  VO(peri_svg_abort, peri_svg_abort(NN(svg2)))                                                   \
  ST(peri_gif_commit, peri_gif_commit(NN(gif2)))                                                 \
  ST(peri_svg_commit, peri_svg_commit(NN(svg2)))                                                 \
  ST(peri_tokenizer_load, peri_tokenizer_load(NN(ctx), NN(spare), NN(&tok2)))                    \
  ST(peri_tokenizer_parse, peri_tokenizer_parse(NN(ctx), NN("{}"), 2, NN(&tok2)))                \
  VO(peri_tokenizer_close, peri_tokenizer_close(NN(tok2)))                                       \
  NO(peri_tokenizer_size, peri_tokenizer_size(NN(tok)))                                          \
  NO(peri_tokenizer_role, peri_tokenizer_role(NN(tok), PERI_TOKEN_BOS))                          \
  VO(peri_tokenizer_ends, (void)peri_tokenizer_ends(NN(tok), NN(&size)))                         \
  VO(peri_tokenizer_template, (void)peri_tokenizer_template(NN(tok), NN(&size)))                 \
  NO(peri_tokenizer_id, peri_tokenizer_id(NN(tok), NN("a"), 1))                                  \
  VO(peri_tokenizer_token, (void)peri_tokenizer_token(NN(tok), 1, NN(&size)))                    \
  NO(peri_tokenizer_added_count, peri_tokenizer_added_count(NN(tok)))                            \
  ST(peri_tokenizer_added, peri_tokenizer_added(NN(tok), 0, NN(&added)))                         \
  NO(peri_tokenizer_is_special, peri_tokenizer_is_special(NN(tok), 1))                           \
  VO(peri_tokenizer_padding, (void)peri_tokenizer_padding(NN(tok)))                              \
  VO(peri_tokenizer_truncation, (void)peri_tokenizer_truncation(NN(tok)))                        \
  NO(peri_tokenizer_max_length, peri_tokenizer_max_length(NN(tok)))                              \
  NO(peri_tokenizer_part,                                                                        \
     peri_tokenizer_part(NN(tok), false, 0, NN(&ia), NN(&ib), NN(&ids), NN(&size)))              \
  ST(peri_tokenizer_encode, peri_tokenizer_encode(NN(tok), 1, NN(texts), 0, NN(&ids), NN(ends))) \
  ST(peri_tokenizer_decode, peri_tokenizer_decode(NN(tok), NN(some_ids), 1, false, NN(&text)))   \
  VO(peri_bpe_options_init, peri_bpe_options_init(NN(&bpe)))                                     \
  ST(peri_tokenizer_train_bpe,                                                                   \
     peri_tokenizer_train_bpe(NN(ctx), 1, NN(texts), NN(&bpe), NN(&data), NN(&size)))            \
  ST(peri_token_stream_open, peri_token_stream_open(NN(tok), false, NN(&stream2)))               \
  VO(peri_token_stream_close, peri_token_stream_close(NN(stream2)))                              \
  ST(peri_token_stream_push, peri_token_stream_push(NN(stream), 65, NN(&text)))                  \
  ST(peri_token_stream_finish, peri_token_stream_finish(NN(stream), NN(&text)))                  \
  VO(peri_profile_start, peri_profile_start(NN(ctx)))                                            \
  VO(peri_profile_stop, peri_profile_stop(NN(ctx)))                                              \
  NO(peri_profile_count, peri_profile_count(NN(ctx)))                                            \
  VO(peri_replay_options_init, peri_replay_options_init(NN(&replay_options)))                    \
  ST(peri_replay_open, peri_replay_open(NN(ctx), NN(&replay_options), NN(&replay2)))             \
  VO(peri_replay_close, peri_replay_close(NN(replay2)))                                          \
  NO(peri_replay_size, peri_replay_size(NN(replay)))                                             \
  NO(peri_replay_breaks, peri_replay_breaks(NN(replay)))                                         \
  NO(peri_replay_bytes, peri_replay_bytes(NN(replay)))                                           \
  VO(peri_replay_clear, peri_replay_clear(NN(replay)))                                           \
  NO(peri_replay_input, peri_replay_input(NN(replay), 0))                                        \
  NO(peri_replay_output, peri_replay_output(NN(replay), false, 0))                               \
  ST(peri_replay_add, peri_replay_add(NN(replay), 5, NN(sampled)))                               \
  ST(peri_replay_sample, peri_replay_sample(NN(replay), 1, 1, 6, NN(sampled)))                   \
  ST(peri_replay_sequences, peri_replay_sequences(NN(replay), 1, 1, 0, 1, 7, NN(sampled)))       \
  ST(peri_replay_gather, peri_replay_gather(NN(replay), NN(position), 6, NN(sampled)))           \
  ST(peri_replay_prioritise, peri_replay_prioritise(NN(replay), NN(position), NN(t)))            \
  ST(peri_replay_state, peri_replay_state(NN(replay), 0, NN(&state_name), NN(&made)))            \
  ST(peri_replay_restore, peri_replay_restore(NN(replay), 1, NN(names), NN(list)))               \
  ST(peri_rollout_open, peri_rollout_open(NN(ctx), 1, 1, 1, NN(fields), NN(&rollout2)))          \
  VO(peri_rollout_close, peri_rollout_close(NN(rollout2)))                                       \
  NO(peri_rollout_fields, peri_rollout_fields(NN(rollout)))                                      \
  NO(peri_rollout_name, peri_rollout_name(NN(rollout), 0))                                       \
  NO(peri_rollout_role, peri_rollout_role(NN(rollout), 0))                                       \
  NO(peri_rollout_tensor, peri_rollout_tensor(NN(rollout), 0))                                   \
  ST(peri_rollout_set, peri_rollout_set(NN(rollout), 0, 1, NN(sampled)))                         \
  ST(peri_rollout_shuffle, peri_rollout_shuffle(NN(rollout), false, 1, 1, NN(&made)))            \
  ST(peri_rollout_batch,                                                                         \
     peri_rollout_batch(NN(rollout), false, NN(position), 0, 1, 1, NN(sampled)))                 \
  ST(peri_profile_at, peri_profile_at(NN(ctx), 0, NN(&row)))                                     \
  VO(peri_pcg64_seed, peri_pcg64_seed(NN(&pcg), 1))                                              \
  NO(peri_pcg64_next, peri_pcg64_next(NN(&pcg)))                                                 \
  VO(peri_pcg64_double, (void)peri_pcg64_double(NN(&pcg)))                                       \
  VO(peri_pcg64_uniform, (void)peri_pcg64_uniform(NN(&pcg), 0, 1))                               \
  NO(peri_pcg64_integer, peri_pcg64_integer(NN(&pcg), 9))                                        \
  VO(peri_pcg64_normal, (void)peri_pcg64_normal(NN(&pcg)))                                       \
  VO(peri_space_box, (void)peri_space_box(PERI_F32, 0, 1, 1, NN(n1)))                            \
  VO(peri_space_multi_discrete, (void)peri_space_multi_discrete(1, NN(n1)))                      \
  ST(peri_space_check, peri_space_check(NN(ctx), NN(&box)))                                      \
  NO(peri_space_size, peri_space_size(NN(&box)))                                                 \
  ST(peri_space_bounds, peri_space_bounds(NN(ctx), NN(&box), 0, NN(&num), NN(&num)))             \
  NO(peri_space_contains, peri_space_contains(NN(&box), NN(floats)))                             \
  ST(peri_space_sample, peri_space_sample(NN(ctx), NN(&box), NN(&pcg), MAY(NULL), NN(buf)))      \
  VO(peri_env_fail, (void)peri_env_fail(NN(&env_io), NN("%s"), "x"))                             \
  VO(peri_env_number, (void)peri_env_number(NN(env->args), NN("sutton_barto_reward")))           \
  NO(peri_env_text, peri_env_text(NN(env->args), NN("sutton_barto_reward")))                     \
  NO(peri_env_alloc, peri_env_alloc(NN(env->args), 8))                                           \
  ST(peri_env_refuse, peri_env_refuse(NN(env->args), NN("%s"), "x"))                             \
  ST(peri_env_register, peri_env_register(NN(ctx), NN(&env->def)))                               \
  NO(peri_env_at, peri_env_at(NN(ctx), 0))                                                       \
  NO(peri_env_find, peri_env_find(NN(ctx), NN("CartPole-v1")))                                   \
  VO(peri_env_options_init, peri_env_options_init(NN(&env_options)))                             \
  ST(peri_env_make, peri_env_make(NN(ctx), NN("CartPole-v1"), MAY(&env_options), NN(&env2)))     \
  ST(peri_env_make_of, peri_env_make_of(NN(ctx), NN(&env->def), MAY(NULL), NN(&env2)))           \
  VO(peri_env_close, peri_env_close(NN(env2)))                                                   \
  NO(peri_env_def_of, peri_env_def_of(NN(env)))                                                  \
  NO(peri_env_spec_of, peri_env_spec_of(NN(env)))                                                \
  NO(peri_env_count, peri_env_count(NN(env)))                                                    \
  NO(peri_env_rows, peri_env_rows(NN(env)))                                                      \
  NO(peri_env_max_steps, peri_env_max_steps(NN(env)))                                            \
  ST(peri_env_reset, peri_env_reset(NN(env), MAY(&env_seed), MAY(env_mask)))                     \
  ST(peri_env_step, peri_env_step(NN(env), NN(buf)))                                             \
  ST(peri_env_tensor, peri_env_tensor(NN(env), PERI_ENV_OBS, NN(&made)))                         \
  NO(peri_env_data, peri_env_data(NN(env), PERI_ENV_OBS))                                        \
  NO(peri_env_next_episode, peri_env_next_episode(NN(env), NN(&episode)))                        \
  NO(peri_env_dropped_episodes, peri_env_dropped_episodes(NN(env)))                              \
  NO(peri_env_save_size, peri_env_save_size(NN(env)))                                            \
  ST(peri_env_save, peri_env_save(NN(env), 0, NN(buf), 8))                                       \
  ST(peri_env_load, peri_env_load(NN(env), 0, NN(buf), 8))                                       \
  ST(peri_env_draw, peri_env_draw(NN(env), 0, NN(frame)))                                        \
  ST(peri_env_print, peri_env_print(NN(env), 0, NN(buf), 8))                                     \
  ST(peri_policy_load, peri_policy_load(NN(ctx), NN(spare), NN(&policy2)))                       \
  VO(peri_policy_close, peri_policy_close(NN(policy2)))                                          \
  NO(peri_policy_obs, peri_policy_obs(NN(policy)))                                               \
  NO(peri_policy_action, peri_policy_action(NN(policy)))                                         \
  NO(peri_policy_env, peri_policy_env(NN(policy)))                                               \
  NO(peri_policy_choices, peri_policy_choices(NN(policy)))                                       \
  ST(peri_policy_act, peri_policy_act(NN(policy), 1, NN(floats), MAY(NULL), true, NN(buf)))      \
  ST(peri_policy_restart, peri_policy_restart(NN(policy), 0, MAY(NULL)))

#endif
