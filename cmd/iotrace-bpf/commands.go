package main

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/iotrace-bpf/iotrace-bpf/output"
)

// command is one of the words that may stand first on the command line, and its
// help page. Without such a word the program traces: that command's name is "".
type command struct {
	name     string   // as it is typed: "vxlan list"
	summary  string   // what it does, a sentence without its full stop
	usage    []string // lines after the program's name
	about    string   // what must be known beside the flags
	examples []string
	exit     string   // exit codes of its own
	text     string   // the whole page, in place of all of the above
	args     []string // the words that may follow
	files    bool     // takes a file's name
	flags    func() *flagSet
	run      func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// commands returns all commands, the one that traces first.
func commands() []*command {
	return []*command{
		{
			name: "", text: mainPage, run: runTrace,
			flags: func() *flagSet { return newOptions().traceFlags() },
		},
		{
			name:    "check",
			summary: "Shows what this kernel and this machine offer for tracing",
			usage:   []string{"check [FLAGS]"},
			about: `It attaches everything, says which kernel hooks were chosen and what they cannot
see, asks the container engines for their versions, and detaches.
`,
			examples: []string{
				"iotrace-bpf check                  can this machine be traced?",
				"iotrace-bpf check --source nfs -v  what was tried for NFS",
			},
			exit:  exitText,
			flags: func() *flagSet { return newOptions().checkFlags() },
			run:   runCheck,
		},
		{
			name:    "replay",
			summary: "Shows a recording, on any machine and with other keys and filters than live",
			usage: []string{"replay [FLAGS] FILE... [INTERVAL [COUNT]]",
				"replay [FLAGS] --elasticsearch URL --since TIME [INTERVAL [COUNT]]"},
			about: `FILE was made with iotrace-bpf --record FILE; - is standard input. A full FILE
became FILE.1 and that one FILE.2: the replay begins with the oldest of them and
ends with FILE. With an INTERVAL the recorded intervals are joined into longer
ones. Where a recording is damaged, what is before and after is shown. It holds
the names and labels of every container: treat it as confidential.

Several recordings, and all in a directory, are shown as one, by the clocks of
their hosts: how much two clocks differ cannot be seen in recordings. Rows of
what is one host's own have its name behind them, or are grouped by host:
--by host,project. Two recordings of one host at one time count twice.

With --since the answer comes from the cluster that hosts ship to: one table of
all hosts for that time, or one for each INTERVAL. The cluster adds up; no
document is fetched. There are no latencies, labels, processes and requests.
Silent hosts and reported losses are warnings.
`,
			examples: []string{
				"iotrace-bpf replay web1.rec web2.rec --by host,project",
				"iotrace-bpf replay --elasticsearch URL --since 1h --by project,host",
			},
			files: true,
			flags: func() *flagSet { return newOptions().replayFlags() },
			run:   runReplay,
		},
		{
			name:    "vxlan",
			summary: "Finds the overlay devices that keep containers of a Docker Swarm from starting",
			usage: []string{
				"vxlan [list] [FLAGS]   all vxlan devices, each with a verdict",
				"vxlan watch [FLAGS]    what happens to them, and who did it",
				"vxlan clean [FLAGS]    delete the leaked ones, after a question",
			},
			about: vxlanAbout,
			examples: []string{
				"iotrace-bpf vxlan              is a device leaked?",
				"iotrace-bpf vxlan clean --yes  delete leaked devices without a question",
			},
			exit:  vxlanExit,
			args:  []string{"list", "watch", "clean"},
			flags: func() *flagSet { return newVXLANOptions().listFlags("vxlan") },
			run:   runVXLAN,
		},
		{
			name:     "vxlan list",
			summary:  "Lists each vxlan device with its network and a verdict",
			usage:    []string{"vxlan [list] [FLAGS]"},
			about:    vxlanListAbout,
			examples: []string{"iotrace-bpf vxlan list", "iotrace-bpf vxlan list --output ndjson | jq ."},
			exit:     vxlanExit,
			flags:    func() *flagSet { return newVXLANOptions().listFlags("vxlan list") },
			run:      runVXLANVerb("list"),
		},
		{
			name:     "vxlan watch",
			summary:  "Shows what happens to vxlan devices, and which process did it",
			usage:    []string{"vxlan watch [FLAGS]"},
			examples: []string{"iotrace-bpf vxlan watch", "iotrace-bpf vxlan watch --duration 10m --output ndjson"},
			exit:     vxlanExit,
			flags:    func() *flagSet { return newVXLANOptions().watchFlags() },
			run:      runVXLANVerb("watch"),
		},
		{
			name:     "vxlan clean",
			summary:  "Deletes leaked vxlan devices, after a question",
			usage:    []string{"vxlan clean [FLAGS]"},
			about:    vxlanCleanAbout,
			examples: []string{"iotrace-bpf vxlan clean --dry-run", "iotrace-bpf vxlan clean --yes"},
			exit:     vxlanExit,
			flags:    func() *flagSet { return newVXLANOptions().cleanFlags() },
			run:      runVXLANVerb("clean"),
		},
		{
			name:     "elasticsearch",
			summary:  "Prepares Elasticsearch or OpenSearch for the documents of iotrace-bpf",
			usage:    []string{"elasticsearch setup --elasticsearch URL [FLAGS]"},
			about:    setupAbout,
			examples: setupExamples,
			args:     []string{"setup"},
			flags:    func() *flagSet { return bareFlags("elasticsearch") },
			run:      runElasticsearch,
		},
		{
			name:     "elasticsearch setup",
			summary:  "Installs index templates, the lifecycle policy and the dashboard",
			usage:    []string{"elasticsearch setup --elasticsearch URL [FLAGS]", "elasticsearch setup --print-dashboard"},
			about:    setupAbout,
			examples: setupExamples,
			flags:    func() *flagSet { return newOptions().setupFlags() },
			run:      runElasticsearchSetup,
		},
		{
			name:     "launch",
			summary:  "Runs iotrace-bpf in a container beside this one, with all of the host",
			usage:    []string{"launch -- [ARGUMENTS]"},
			about:    launchAbout,
			examples: []string{"iotrace-bpf launch -- --no-tui --output ndjson --interval 60", "iotrace-bpf launch -- check"},
			flags:    launchFlags,
			run:      runLaunch,
		},
		{
			name:    "completion",
			summary: "Prints a script that completes the command line of iotrace-bpf in a shell",
			usage:   []string{"completion bash|zsh|fish"},
			about: `The script asks iotrace-bpf itself for commands, flags and values. For all
users, write it where the shell looks for completions:
  bash  /usr/share/bash-completion/completions/iotrace-bpf
  zsh   /usr/share/zsh/site-functions/_iotrace-bpf
  fish  /usr/share/fish/vendor_completions.d/iotrace-bpf.fish
`,
			examples: []string{
				"source <(iotrace-bpf completion bash)     for this shell only",
				"iotrace-bpf completion fish > ~/.config/fish/completions/iotrace-bpf.fish",
			},
			args:  []string{"bash", "zsh", "fish"},
			flags: completionFlags,
			run:   runCompletion,
		},
		{
			name:     "version",
			summary:  "Shows the version of iotrace-bpf",
			usage:    []string{"version"},
			examples: []string{"iotrace-bpf version", "iotrace-bpf --version"},
			flags:    versionFlags,
			run:      runVersion,
		},
		{
			name:     "help",
			summary:  "Shows the help page of a command or of a topic",
			usage:    []string{"help [COMMAND|TOPIC]"},
			about:    "Topics: flags (all flags of tracing), totals (what a row counts), environment.\n",
			examples: []string{"iotrace-bpf help flags", "iotrace-bpf help vxlan clean"},
			flags:    helpFlags,
			run:      runHelp,
		},
		{name: completeCommand, run: runComplete},
	}
}

// topics are pages of "help" that belong to no command.
func topics() []*command {
	return []*command{
		{
			name:    "flags",
			summary: "Traces, and shows who causes the I/O load. These are all flags",
			usage:   []string{"[FLAGS] [INTERVAL [COUNT]]"},
			examples: []string{
				"iotrace-bpf --by project,device 5         every 5 seconds, by device as well",
				"iotrace-bpf --by project --output ndjson 1 3 | jq .",
			},
			exit:  exitText,
			flags: func() *flagSet { return newOptions().traceFlags() },
		},
		{name: "totals", summary: "What the rows and totals count", text: totalsPage},
		{name: "environment", summary: "How environment variables set flags", text: environmentPage},
	}
}

// commandNames are the words that may stand first.
func commandNames() []string {
	var names []string
	for _, c := range commands() {
		if c.name != "" && c.name != completeCommand && !strings.Contains(c.name, " ") {
			names = append(names, c.name)
		}
	}
	return names
}

func commandOf(name string) *command {
	i := slices.IndexFunc(commands(), func(c *command) bool { return c.name == name })
	if i < 0 {
		return nil
	}
	return commands()[i]
}

// findCommand takes the words of a command off the command line.
func findCommand(args []string) (*command, []string, error) {
	found := commandOf("")
	name := ""
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		longer := strings.TrimSpace(name + " " + args[0])
		c := commandOf(longer)
		if c == nil {
			break
		}
		name, found, args = longer, c, args[1:]
	}
	// A word where a command of a command stands is a mistake.
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") && len(found.args) > 0 && found.name != "completion" {
		return nil, nil, &usageError{err: &output.UnknownError{What: "command of " + found.name, Word: args[0], Known: found.args}}
	}
	return found, args, nil
}

// mainPage fits on one screen. Its flags are those of an incident.
const mainPage = `Shows which container, service or project causes the I/O load of this machine.

Usage:
  iotrace-bpf [FLAGS] [INTERVAL [COUNT]]     for example every 5 seconds: 5
  iotrace-bpf COMMAND [FLAGS]

  iotrace-bpf --by project                   which project is it?
  iotrace-bpf --by container --filter project=shop --sort write

Flags (all of them: iotrace-bpf help flags):
  --by KEY[,KEY]       one row for each container (default), project, service,
                       pod, process, device, mount ...
  --filter KEY=GLOB    only what matches
  --sort COLUMN        total (default), read, write, ops, latency, name
  --top N              the first N rows and the sum of the others
  --source LIST        only block, nfs, fuse, smb, 9p or ceph
  --level both         also what programs read and write, before the cache
  --duration TIME      stop after 30 (seconds), 10m, 1h
  --output ndjson      documents instead of tables
  --record FILE        write everything to FILE, for iotrace-bpf replay
  --report FILE        write an HTML page to FILE at the end

Commands (their pages: iotrace-bpf help COMMAND):
  check          what this kernel and this machine offer
  replay         show a recording
  vxlan          overlay network devices that block containers
  elasticsearch  prepare a server for documents
  launch         run on a node of a Docker Swarm, from a task
  completion     completion for bash, zsh and fish
  version, help  help topics: flags, totals, environment

` + exitText

const exitText = `Exit code: 0 done, 1 failed, 2 wrong usage, 3 this kernel or these privileges do
not allow tracing.
`

const totalsPage = `What the rows and totals of iotrace-bpf count.

Bytes are counted where they leave the page cache: as a request to a block
device, to an NFS, SMB, 9p or Ceph server or to a FUSE daemon. Reads that the
page cache answers cost the storage nothing and are not counted (--level app
shows them).

  Writes belong to the cgroup that made the pages dirty, also when a kernel
  thread or the sync of another process sends them.
  Reads belong to the cgroup that asked for them.

Stacked block devices (device mapper, md, loop over a local file) count once, at
the lowest device. What a FUSE daemon then does to disks or servers belongs to
the daemon.

On an NFS server, block I/O belongs to the client that wrote or read: its rows
are "nfs client NAME (ADDRESS)", and --by nfs-export tells directories apart.
--source nfsd counts what the clients ask for instead, also what the server's
memory answers: the bytes of the line "io" in /proc/net/rpc/nfsd. The two are
never added to each other, so nfsd is off by default and traced alone.
A replay of clients and their server (recordings, or a cluster) by nfs-export
divides what the server's disks did for a client among the projects there, as
they sent it. Clients that do not report keep their rows, which say so. Add
--source block to see the disks alone.

Rows in parentheses are no workloads:
  (kernel)        metadata and journals of file systems that the kernel charges
                  to nobody
  (unattributed)  requests whose owner the kernel does not tell
  (other)         what was more than --max-groups combinations
  (rest)          the rows that --top does not show
  (filtered out)  what --filter does not match

TOTAL is the sum of all rows. The rows of a block device add up to the numbers
of /proc/diskstats.
`

const environmentPage = `How environment variables set the flags of iotrace-bpf.

Each flag has a variable: IOTRACE_ and the flag's name in capitals, with _ for
each dash.

  --by project            IOTRACE_BY=project
  --latency=false         IOTRACE_LATENCY=false
  --source nfs,fuse       IOTRACE_SOURCE=nfs,fuse
  --record-size 1GiB      IOTRACE_RECORD_SIZE=1GiB

A flag on the command line comes before its variable, and so do INTERVAL and
COUNT. A variable with no value counts as not set. A command ignores variables
of flags that it does not have, and warns of names that belong to no flag.

Flags that may be repeated take one value for each line of the variable:
--filter, --export-label, --docker-host, --cri, --containerd, --netns-dir.
--source and --elasticsearch take a list with commas.

Secrets have no flag, because every user of the machine can read the command
line of a process:

  IOTRACE_ELASTICSEARCH_API_KEY    the key that --elasticsearch-api-key-file
                                   would read from a file
  IOTRACE_ELASTICSEARCH_PASSWORD   the password of --elasticsearch-username
`

const setupAbout = `Run it once for each cluster, before --elasticsearch sends documents to it, and
again after an upgrade of iotrace-bpf: data streams that exist get its new
fields, for which the key needs the index privilege manage.
`

var setupExamples = []string{
	"iotrace-bpf elasticsearch setup --elasticsearch https://es.example:9200",
	"iotrace-bpf elasticsearch setup --print-dashboard > dashboard.ndjson",
}
