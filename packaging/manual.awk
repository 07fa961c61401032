# Puts the flags of "iotrace-bpf help flags" into the manual page:
# awk -f manual.awk FLAGS iotrace-bpf.1.in
function roff(s) {
	gsub(/\\/, "\\e", s)
	gsub(/-/, "\\-", s)
	if (s ~ /^[.']/) s = "\\&" s
	return s
}
NR == FNR {
	if (/^Examples:/) done = 1
	if (done || /^Usage:/ || /^  iotrace-bpf/ || /^$/) next
	if (/^[A-Z].*:$/) {
		options = options ".SS " roff(substr($0, 1, length($0) - 1)) "\n"
	} else if (match($0, /^ +-/)) {
		line = substr($0, RLENGTH)
		at = match(line, /  +/)
		options = options ".TP\n.B " roff(substr(line, 1, at - 1)) "\n" roff(substr(line, at + RLENGTH)) "\n"
	} else if (/^ /) {
		sub(/^ +/, "")
		options = options roff($0) "\n"
	}
	next
}
/^@OPTIONS@$/ { printf "%s", options; next }
{ print }
