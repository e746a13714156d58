// The load that a bench puts on a cluster through client-go, the official Go client, which sends everything over its
// BatchCommands streams. bench/load.py says what the arguments mean and what is printed.
//
// usage: client-go-load PD_ENDPOINT,... put|get|fill|scan IN_FLIGHT KEYS SECONDS
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
	"time"

	"github.com/pingcap/log"
	"github.com/tikv/client-go/v2/config"
	"github.com/tikv/client-go/v2/rawkv"
	"go.uber.org/zap"
)

const (
	valueBytes = 100
	fillAtOnce = 500
	scanPairs  = 100
)

type told struct {
	Done    int     `json:"done"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
}

type load struct {
	client *rawkv.Client
	action string
	keys   int
	value  []byte
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
	client, err := rawkv.NewClient(ctx, strings.Split(args[0], ","), config.DefaultConfig().Security)
	if err != nil {
		return err
	}
	defer client.Close()
	work := load{client, args[1], keys, []byte(strings.Repeat("x", valueBytes))}
	if work.action == "fill" {
		return work.fill(ctx, inFlight)
	}
	if _, err := work.many(ctx, inFlight, time.Now().Add(100*time.Millisecond)); err != nil { // connections and caches
		return err
	}
	began := time.Now()
	took, err := work.many(ctx, inFlight, began.Add(time.Duration(seconds*float64(time.Second))))
	if err != nil {
		return err
	}
	return tell(took, time.Since(began))
}

func tell(took []time.Duration, all time.Duration) error {
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	at := func(share float64) float64 {
		return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1000
	}
	return json.NewEncoder(os.Stdout).Encode(told{len(took), all.Seconds(), at(0.5), at(0.99)})
}

func key(number int) []byte { return []byte(fmt.Sprintf("bench-%08d", number)) }

// many has so many workers do one operation after another until then, and returns how long each took.
func (l load) many(ctx context.Context, workers int, until time.Time) ([]time.Duration, error) {
	took, failed := make([][]time.Duration, workers), make([]error, workers)
	var group sync.WaitGroup
	for number := range took {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			chance := rand.New(rand.NewSource(int64(number)))
			for failed[number] == nil && time.Now().Before(until) {
				began := time.Now()
				failed[number] = l.act(ctx, chance.Intn(l.keys))
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
		return l.client.Put(ctx, key(number), l.value)
	case "get":
		got, err := l.client.Get(ctx, key(number))
		if err == nil && len(got) != valueBytes {
			err = fmt.Errorf("%s is %q", key(number), got)
		}
		return err
	case "scan":
		_, _, err := l.client.Scan(ctx, key(number), nil, scanPairs)
		return err
	}
	return fmt.Errorf("put, get, fill or scan is wanted, not %s", l.action)
}

// fill writes every key once.
func (l load) fill(ctx context.Context, workers int) error {
	began, next := time.Now(), make(chan int)
	failed := make([]error, workers)
	var group sync.WaitGroup
	for number := range failed {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			for first := range next {
				var some, values [][]byte
				for each := first; each < min(first+fillAtOnce, l.keys); each++ {
					some, values = append(some, key(each)), append(values, l.value)
				}
				if failed[number] == nil {
					failed[number] = l.client.BatchPut(ctx, some, values)
				}
			}
		}(number)
	}
	for first := 0; first < l.keys; first += fillAtOnce {
		next <- first
	}
	close(next)
	group.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(told{Done: l.keys, Seconds: time.Since(began).Seconds()})
}
