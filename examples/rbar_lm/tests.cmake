# The program as a user meets it: what it does, its exit codes, and what it says when it is misused.
set(folder ${CMAKE_CURRENT_BINARY_DIR}/rbar_lm_test)
file(MAKE_DIRECTORY ${folder})
set(text ${PROJECT_SOURCE_DIR}/README.md)

# rbar_lm_test(NAME EXIT_CODE PATTERN ARGUMENT...): the output has a line that matches PATTERN; with exit code 2
# there is nothing but that line, on stderr.
function(rbar_lm_test NAME EXIT_CODE PATTERN)
  add_test(NAME "rbar_lm: ${NAME}"
           COMMAND ${CMAKE_COMMAND} -DEXIT_CODE=${EXIT_CODE} "-DPATTERN=${PATTERN}" -DPROGRAM=$<TARGET_FILE:rbar_lm>
                   -P ${CMAKE_CURRENT_SOURCE_DIR}/rbar_lm/expect.cmake -- ${ARGN})
  set_tests_properties("rbar_lm: ${NAME}" PROPERTIES LABELS example WORKING_DIRECTORY ${folder})
endfunction()

set(tiny --d_model 16 --n_layers 1 --n_heads 2)
foreach(model IN ITEMS standard cort)
  rbar_lm_test("train ${model}" 0 "\"val_bpc\":[0-9.]+" train --model ${model} --text ${text} --steps 4 --batch 2
               --context 16 ${tiny} --out ${model} --csv ${model}.csv --json)
  set_tests_properties("rbar_lm: train ${model}" PROPERTIES FIXTURES_SETUP ${model})
  rbar_lm_test("eval ${model}" 0 "\"val_nats\":[0-9.]+" eval --from ${model} --text ${text} --json)
  rbar_lm_test("generate ${model}" 0 "\"tokens\":\\[" generate --from ${model} --prompt rbar --tokens 8 --json)
  rbar_lm_test("audit ${model}" 0 "\"causal\":true" audit --from ${model} --json)
  rbar_lm_test("inspect ${model}" 0 "\"parameters\":[0-9]+" inspect --from ${model} --prompt coherence --json)
  foreach(command IN ITEMS eval generate audit inspect)
    set_tests_properties("rbar_lm: ${command} ${model}" PROPERTIES FIXTURES_REQUIRED ${model})
  endforeach()
endforeach()
rbar_lm_test("train cgt" 0 "\"causal\":true" train --model cgt --text ${text} --steps 2 --batch 2 --context 16
             --d_model 16 --n_heads 2 --out cgt --json)
set_tests_properties("rbar_lm: train cgt" PROPERTIES FIXTURES_SETUP cgt)
rbar_lm_test("lanes cgt" 0 "\"shares\":{\"reflex\":[0-9.]+" lanes --from cgt --prompt "a <b> & c" --html lanes.html
             --json)
set_tests_properties("rbar_lm: lanes cgt" PROPERTIES FIXTURES_REQUIRED cgt)
rbar_lm_test("lanes of a model without lanes" 2 "such as cgt, got standard" lanes --from standard --prompt rbar)
set_tests_properties("rbar_lm: lanes of a model without lanes" PROPERTIES FIXTURES_REQUIRED standard)
rbar_lm_test("train phasegpt" 0 "\"causal\":true" train --model phasegpt --text ${text} --steps 2 --batch 2
             --context 16 ${tiny} --phase_layer_idx 0 --n_oscillators 4 --out phasegpt --json)
rbar_lm_test("a phase layer that is not there" 2 "phase_layer_idx" train --model phasegpt --text ${text} ${tiny}
             --phase_layer_idx 0,1)
rbar_lm_test("phasegpt as published leaks" 1 "\"causal\":false" audit --model phasegpt ${tiny} --phase_layer_idx 0
             --causality reference --json)
rbar_lm_test("train kuramoto" 0 "\"causal\":true" train --model kuramoto --text ${text} --steps 2 --batch 2
             --context 16 ${tiny} --gate static --readout tied --out kuramoto --json)
rbar_lm_test("resume" 0 "\"steps\":6" train --text ${text} --steps 6 --batch 2 --context 16 --out standard --resume
             --allow-changes --json)
rbar_lm_test("resume with other options" 2 "steps 5" train --text ${text} --steps 5 --batch 2 --context 16 --out standard
             --resume)
rbar_lm_test("resume as another family" 2 "--model: expected standard, as standard has it" train --text ${text} --steps 6
             --batch 2 --context 16 --out standard --resume --allow-changes --model cort)
rbar_lm_test("resume with another config" 2 "d_model: expected 16, as .*got 32" train --text ${text} --steps 6 --batch 2
             --context 16 --out standard --resume --allow-changes --d_model 32)
rbar_lm_test("resume with another tokenizer" 2 "--tokenizer: expected bytes, as .*got chars" train --text ${text}
             --steps 6 --batch 2 --context 16 --out standard --resume --allow-changes --tokenizer chars)
set_tests_properties("rbar_lm: resume" "rbar_lm: resume with other options" "rbar_lm: resume as another family"
                     "rbar_lm: resume with another config" "rbar_lm: resume with another tokenizer"
                     PROPERTIES FIXTURES_REQUIRED standard RESOURCE_LOCK standard)
rbar_lm_test("train pma" 0 "\"causal\":true" train --model pma --text ${text} --steps 2 --batch 2 --context 16
             --d_model 16 --n_heads 2 --ssm_blocks 1 --pma_blocks 1 --out pma --json)
rbar_lm_test("eval pma" 0 "\"val_nats\":[0-9.]+" eval --from pma --text ${text} --json)
rbar_lm_test("audit pma" 0 "\"causal\":true" audit --from pma --json)
add_test(NAME "rbar_lm: phases of pma" COMMAND ${CMAKE_COMMAND} -E cat ${folder}/pma/phases.csv)
set_tests_properties("rbar_lm: phases of pma" PROPERTIES LABELS example PASS_REGULAR_EXPRESSION
                                                         "step,layer,R_mean,[^\n]*\n[12],0,0?[.0-9]+,")
set_tests_properties("rbar_lm: train pma" PROPERTIES FIXTURES_SETUP pma)
set_tests_properties("rbar_lm: train phasegpt" PROPERTIES FIXTURES_SETUP phasegpt)
set_tests_properties("rbar_lm: train kuramoto" PROPERTIES FIXTURES_SETUP kuramoto)
foreach(model IN ITEMS standard cort cgt phasegpt kuramoto pma)
  rbar_lm_test("generate ${model} in bf16" 0 "\"bf16\":\"weights\"" generate --from ${model} --prompt rbar --tokens 8
               --bf16 --json)
  set_tests_properties("rbar_lm: generate ${model} in bf16" PROPERTIES FIXTURES_REQUIRED ${model})
endforeach()
rbar_lm_test("eval in bf16" 0 "\"parameters\":[0-9]+,\"bf16\":\"both\",\"val_nats\":[0-9.]+" eval --from standard
             --text ${text} --bf16 both --json)
rbar_lm_test("train in bf16" 0 "\"products\":\"bf16\"" train --text ${text} --steps 2 --batch 2 --context 16 ${tiny} --bf16
             --out bf16 --json)
set_tests_properties("rbar_lm: train in bf16" PROPERTIES FIXTURES_SETUP bf16)
rbar_lm_test("resume in fp32 what trained in bf16" 2 "products .fp32. .as here., got products .bf16." train --text ${text}
             --steps 2 --batch 2 --context 16 --out bf16 --resume)
set_tests_properties("rbar_lm: resume in fp32 what trained in bf16" PROPERTIES FIXTURES_REQUIRED bf16)
rbar_lm_test("eval in bf8" 2 "--bf16: weights or both, got bf8" eval --from standard --text ${text} --bf16 bf8)
set_tests_properties("rbar_lm: eval in bf16" PROPERTIES FIXTURES_REQUIRED standard)
set_tests_properties("rbar_lm: eval pma" "rbar_lm: audit pma" "rbar_lm: phases of pma" PROPERTIES FIXTURES_REQUIRED pma)
rbar_lm_test("train characters" 0 "\"tokenizer\":\"chars\"" train --text ${text} --tokenizer chars --steps 2 --batch 2
             --context 16 ${tiny} --out chars --json)
rbar_lm_test("audit finds the leak of the published CoRT" 1 "\"causal\":false" audit --model cort
             --causality reference ${tiny} --json)

add_test(NAME "rbar_lm: sweep" COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:rbar_lm> -DTEXT=${text}
         -DFOLDER=${folder}/sweep -P ${CMAKE_CURRENT_SOURCE_DIR}/rbar_lm/sweep_test.cmake)
set_tests_properties("rbar_lm: sweep" PROPERTIES LABELS example)
# rbar_lm_plan(NAME PATTERN PLAN): what a sweep says of a plan that it refuses.
function(rbar_lm_plan NAME PATTERN PLAN)
  string(MAKE_C_IDENTIFIER "${NAME}" file)
  file(WRITE ${folder}/${file}.json "${PLAN}")
  rbar_lm_test("sweep: ${NAME}" 2 "${PATTERN}" sweep ${file}.json --text ${text} --out refused)
endfunction()
set(run "\"name\": \"a\", \"model\": \"standard\"")
rbar_lm_plan("no object" "expected an object, got array" "[]")
rbar_lm_plan("no runs" "runs: expected a list of runs, got none" "{}")
rbar_lm_plan("unknown key" "nearest is 'seeds'.*'seed'" "{\"seed\": 1, \"runs\": [{${run}}]}")
rbar_lm_plan("unknown key of a run" "runs.0.: .*nearest is 'model'.*'modle'" "{\"runs\": [{${run}, \"modle\": 1}]}")
rbar_lm_plan("unknown option" "a.train: .*nearest is 'steps'.*'step'"
             "{\"runs\": [{${run}, \"train\": {\"step\": 1}}]}")
rbar_lm_plan("option of another type" "train.steps: expected an integer"
             "{\"train\": {\"steps\": \"many\"}, \"runs\": [{${run}}]}")
rbar_lm_plan("option out of range" "learning_rate" "{\"train\": {\"lr\": [1e-3, -1]}, \"runs\": [{${run}}]}")
rbar_lm_plan("list of something else" "train.batch" "{\"train\": {\"batch\": [1, 2]}, \"runs\": [{${run}}]}")
rbar_lm_plan("unknown field of a model" "d_model.*'d_modle'" "{\"runs\": [{${run}, \"config\": {\"d_modle\": 16}}]}")
rbar_lm_plan("bad value of a field" "n_heads" "{\"runs\": [{${run}, \"config\": {\"n_heads\": 3}}]}")
rbar_lm_plan("short context" "max_seq_len: expected at least the context, 128, got 8"
             "{\"runs\": [{${run}, \"config\": {\"max_seq_len\": 8}}]}")
rbar_lm_plan("unknown family" "one of cgt" "{\"runs\": [{\"name\": \"a\", \"model\": \"cart\"}]}")
rbar_lm_plan("no family" "a.model: expected the family" "{\"runs\": [{\"name\": \"a\"}]}")
rbar_lm_plan("name twice" "another name than those before" "{\"runs\": [{${run}}, {${run}}]}")
rbar_lm_plan("name of no folder" "name: expected .*got '../a'" "{\"runs\": [{\"name\": \"../a\", \"model\": \"cgt\"}]}")
rbar_lm_plan("seed twice" "seeds: expected each value once, got 3" "{\"seeds\": [3, 3], \"runs\": [{${run}}]}")
rbar_lm_plan("broken plan" "valid JSON" "{\"runs\": ")
rbar_lm_test("sweep without a plan" 2 "nowhere.json" sweep nowhere.json --out refused)
rbar_lm_plan("more tokens than can be counted" "at most 1e15 tokens"
             "{\"train\": {\"steps\": 4000000000000000000, \"batch\": 4}, \"runs\": [{${run}}]}")
rbar_lm_test("sweep with a seed" 2 "--seed" sweep nowhere.json --out refused --seed 3)
rbar_lm_test("sweep without a folder" 2 "--out" sweep nowhere.json)

rbar_lm_test("ablate" 0 "\"name\":\"standard\"" ablate --text ${text} --d_model 16 --n_heads 2 --ssm_blocks 1
             --pma_blocks 1 --steps 4 --batch 2 --context 16 --only full,no_gate,ssm_only,standard --seeds 1,2 --jobs 2
             --out ablate --allow-changes --json)
set_tests_properties("rbar_lm: ablate" PROPERTIES FIXTURES_SETUP ablate)
rbar_lm_test("intervene" 0 "\"value\":0.5,\"nats\":[0-9.]+" intervene --from ablate/runs/full-lr0.001-seed1 --text ${text}
             --on order_parameter --values 0,0.5,1 --windows 4 --csv intervene.csv --svg intervene.svg --json)
set_tests_properties("rbar_lm: intervene" PROPERTIES FIXTURES_SETUP intervene)
add_test(NAME "rbar_lm: the table of intervene" COMMAND ${CMAKE_COMMAND} -E cat ${folder}/intervene.csv)
set_tests_properties(
  "rbar_lm: the table of intervene"
  PROPERTIES LABELS example FIXTURES_REQUIRED intervene
             PASS_REGULAR_EXPRESSION "none,,,[^\n]*\n[^\n]*,0,[0-9][^\n]*\n[^\n]*,0.5,[0-9][^\n]*\n[^\n]*,1,[0-9]")
add_test(NAME "rbar_lm: the phases of ablate" COMMAND ${CMAKE_COMMAND} -E cat ${folder}/ablate/phases.svg)
set_tests_properties("rbar_lm: the phases of ablate" PROPERTIES LABELS example FIXTURES_REQUIRED ablate
                     PASS_REGULAR_EXPRESSION "Order parameter")
rbar_lm_test("intervene on a layer that is not there" 2 "layer" intervene --from ablate/runs/full-lr0.001-seed1
             --text ${text} --on gate --values 0 --layer 1)
rbar_lm_test("intervene with a value that means nothing" 2 "temperature: expected a positive number" intervene
             --from ablate/runs/full-lr0.001-seed1 --text ${text} --on temperature --values 1,0)
rbar_lm_test("intervene on a model without phases" 2 "such as pma, got standard" intervene
             --from ablate/runs/standard-lr0.001-seed1 --text ${text} --on gate --values 0)
set_tests_properties(
  "rbar_lm: intervene" "rbar_lm: intervene on a layer that is not there"
  "rbar_lm: intervene with a value that means nothing" "rbar_lm: intervene on a model without phases"
  PROPERTIES FIXTURES_REQUIRED ablate)
# Another plan takes no folder unasked; a report leaves the plan alone, and is of all that is there.
rbar_lm_test("ablate with another plan" 2 "--allow-changes replaces it" ablate --text ${text} --d_model 16 --n_heads 2
             --steps 5 --batch 2 --context 16 --out ablate)
rbar_lm_test("ablate reports all" 0 "full.*no_gate.*ssm_only.*standard" ablate --text ${text} --only full --report
             --out ablate)
set_tests_properties("rbar_lm: ablate with another plan" "rbar_lm: ablate reports all" PROPERTIES FIXTURES_REQUIRED
                                                                                                  ablate)
rbar_lm_test("ablate what there is not" 2 "by name or folder .full, .*got everything" ablate --text ${text} --d_model 16
             --n_heads 2 --only everything --out refused)
rbar_lm_test("intervene on nothing that is known" 2 "--on" intervene --from ablate --text ${text} --on colour --values 0)

rbar_lm_test("no command" 2 "subcommand")
rbar_lm_test("unknown command" 2 "." fly)
rbar_lm_test("unknown option" 2 "d_model" train --text ${text} --d_modle 16)
rbar_lm_test("option without a value" 2 "--n_layers: expected a value" train --text ${text} --n_layers)
rbar_lm_test("stray word" 2 "'stray'" train --text ${text} stray)
rbar_lm_test("no number" 2 "steps" train --text ${text} --steps many)
rbar_lm_test("bad value of a field" 2 "n_heads" train --text ${text} --d_model 16 --n_heads 3)
rbar_lm_test("unknown model" 2 "one of cgt, cort, [a-z, ]*standard" train --model cart --text ${text})
rbar_lm_test("missing text" 2 "nowhere.txt" train --text nowhere.txt)
rbar_lm_test("folder as text" 2 "${folder}" train --text ${folder})
file(TOUCH ${folder}/empty.txt)
rbar_lm_test("empty text" 2 "empty" train --text empty.txt)
file(WRITE ${folder}/short.txt "short")
rbar_lm_test("text shorter than a window" 2 "window" train --text short.txt)
rbar_lm_test("missing model" 2 "nowhere" generate --from nowhere)
file(WRITE ${folder}/broken.json "{\"d_model\": ")
rbar_lm_test("broken config" 2 "valid JSON" train --text ${text} --config broken.json)
rbar_lm_test("resume without a folder" 2 "--out" train --text ${text} --resume)
rbar_lm_test("bpe without its files" 2 "--bpe-merges" train --text ${text} --tokenizer bpe)
