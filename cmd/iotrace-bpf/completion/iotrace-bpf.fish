# Completion of iotrace-bpf for fish. The program itself knows what can follow.
function __iotrace_bpf_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    for line in ($words[1] __complete $words[2..-1] "$word" 2>/dev/null)
        if test "$line" = :files
            set -l flag (string match -r -- '^--[^=]*=' "$word")
            for path in (__fish_complete_path (string replace -r -- '^--[^=]*=' '' "$word"))
                echo "$flag"$path
            end
        else
            echo $line
        end
    end
end
complete -c iotrace-bpf -f -a '(__iotrace_bpf_complete)'
