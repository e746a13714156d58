// The load that a bench puts on a cluster through client-go, the official Go client, which sends everything over its
// BatchCommands streams. bench/load.py says what the arguments mean and what is printed.
//
// usage: client-go-load PD_ENDPOINT,... put|get|scan|fill|txn-put|transfer IN_FLIGHT KEYS SECONDS
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pingcap/log"
	"github.com/tikv/client-go/v2/config"
	tikverr "github.com/tikv/client-go/v2/error"
	"github.com/tikv/client-go/v2/rawkv"
	"github.com/tikv/client-go/v2/txnkv"
	"go.uber.org/zap"
)

const (
	valueBytes = 100
	fillAtOnce = 500
	scanPairs  = 100
	lockWaitMs = 1000
)

type told struct {
	Done    int     `json:"done"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Warmed  int     `json:"warmed"`
	CPU     float64 `json:"cpu_s"`
}

// load is workers that do one operation after another, each on a number drawn of so many; where an operation would
// conflict with another's, each has numbers of its own: every `own`-th.
type load struct {
	raw     *rawkv.Client
	txn     *txnkv.Client
	action  string
	workers int
	numbers int
	own     int
	value   []byte
}

func main() {
	quiet, _, _ := log.InitLogger(&log.Config{Level: "fatal"})
	log.ReplaceGlobals(quiet, &log.ZapProperties{Level: zap.NewAtomicLevel()})
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client-go-load:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("five arguments are wanted, not %d", len(args))
	}
	inFlight, one := strconv.Atoi(args[2])
	keys, two := strconv.Atoi(args[3])
	seconds, three := strconv.ParseFloat(args[4], 64)
	if one != nil || two != nil || three != nil {
		return fmt.Errorf("numbers are wanted, not %v", args[2:])
	}
	ctx := context.Background()
	work := load{action: args[1], workers: inFlight, numbers: keys, own: 1, value: []byte(strings.Repeat("x", valueBytes))}
	if err := work.connect(ctx, strings.Split(args[0], ",")); err != nil {
		return err
	}
	if work.action == "fill" {
		return work.fill(ctx)
	}
	cpu := used()
	warmed, err := work.many(ctx, time.Now().Add(100*time.Millisecond)) // connections and caches
	if err != nil {
		return err
	}
	began := time.Now()
	took, err := work.many(ctx, began.Add(time.Duration(seconds*float64(time.Second))))
	if err != nil {
		return err
	}
	all := time.Since(began)
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	at := func(share float64) float64 {
		return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1000
	}
	return tell(told{len(took), all.Seconds(), at(0.5), at(0.99), len(warmed), (used() - cpu).Seconds()})
}

// connect makes the client that the action needs. The process ends without closing it.
func (l *load) connect(ctx context.Context, endpoints []string) (err error) {
	if l.action == "txn-put" || l.action == "transfer" {
		l.own, l.numbers = l.workers, l.numbers/l.workers
		l.txn, err = txnkv.NewClient(endpoints)
	} else {
		l.raw, err = rawkv.NewClient(ctx, endpoints, config.DefaultConfig().Security)
	}
	return err
}

// used is what this process has had of the CPU.
func used() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func tell(seen told) error { return json.NewEncoder(os.Stdout).Encode(seen) }

func key(number int) []byte { return []byte(fmt.Sprintf("bench-%08d", number)) }

// many returns how long each operation took that began until then.
func (l load) many(ctx context.Context, until time.Time) ([]time.Duration, error) {
	took, failed := make([][]time.Duration, l.workers), make([]error, l.workers)
	var group sync.WaitGroup
	for number := range took {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			chance := rand.New(rand.NewSource(int64(number)))
			for failed[number] == nil && time.Now().Before(until) {
				began := time.Now()
				failed[number] = l.act(ctx, chance.Intn(l.numbers)*l.own+number%l.own)
				took[number] = append(took[number], time.Since(began))
			}
		}(number)
	}
	group.Wait()
	var all []time.Duration
	for number := range took {
		if failed[number] != nil {
			return nil, failed[number]
		}
		all = append(all, took[number]...)
	}
	return all, nil
}

func (l load) act(ctx context.Context, number int) error {
	switch l.action {
	case "put":
		return l.raw.Put(ctx, key(number), l.value)
	case "get":
		got, err := l.raw.Get(ctx, key(number))
		if err == nil && len(got) != valueBytes {
			err = fmt.Errorf("%s is %q", key(number), got)
		}
		return err
	case "scan":
		_, _, err := l.raw.Scan(ctx, key(number), nil, scanPairs)
		return err
	case "txn-put":
		return l.commit(ctx, false, key(number))
	case "transfer": // between two accounts that are in no other transfer
		return l.commit(ctx, true, key(number), append([]byte("to-"), key(number)...))
	}
	return fmt.Errorf("%s is not known", l.action)
}

// commit writes the keys in one transaction; a pessimistic one locks and reads each of them first.
func (l load) commit(ctx context.Context, pessimistic bool, keys ...[]byte) error {
	one, err := l.txn.Begin()
	if err != nil {
		return err
	}
	one.SetPessimistic(pessimistic)
	for _, each := range keys {
		if pessimistic {
			if err := one.LockKeysWithWaitTime(ctx, lockWaitMs, each); err != nil {
				return err
			}
			if _, err := one.Get(ctx, each); err != nil && !tikverr.IsErrNotFound(err) {
				return err
			}
		}
		if err := one.Set(each, l.value); err != nil {
			return err
		}
	}
	return one.Commit(ctx)
}

// fill writes every key once.
func (l load) fill(ctx context.Context) error {
	began, next := time.Now(), make(chan int)
	failed := make([]error, l.workers)
	var group sync.WaitGroup
	for number := range failed {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			for first := range next {
				var some, values [][]byte
				for each := first; each < min(first+fillAtOnce, l.numbers); each++ {
					some, values = append(some, key(each)), append(values, l.value)
				}
				if failed[number] == nil {
					failed[number] = l.raw.BatchPut(ctx, some, values)
				}
			}
		}(number)
	}
	for first := 0; first < l.numbers; first += fillAtOnce {
		next <- first
	}
	close(next)
	group.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return tell(told{Done: l.numbers, Seconds: time.Since(began).Seconds()})
}
