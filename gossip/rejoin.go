package gossip

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

const (
	// firstRejoin is the first pause while nobody else is in sight; it doubles
	// up to Config.RejoinEvery.
	firstRejoin = time.Second
	// rejoinJitter spreads the nodes' tries: ± a fifth.
	rejoinJitter = 0.2
	// maxJoins bounds the seeds that are tried at once.
	maxJoins = 8
	// aloneAfter is when it is told that nobody is in sight: nodes that start
	// together don't find one another at once.
	aloneAfter = 3 * time.Second
	// deafAfter is for how long a live node may answer no packet before that is
	// told, beside three rounds in which each node is probed once.
	deafAfter = 30 * time.Second
	// seedTimeout bounds the look-up of one seed's name.
	seedTimeout = 5 * time.Second
)

// rejoinLoop asks for all known nodes that are not alive. memberlist forgets
// the address of a dead node after a minute, so after a longer cut nobody would
// ever call anybody (memberlist#222).
func (m *Mesh) rejoinLoop(ctx context.Context) {
	pause, alone := firstRejoin, false
	company := time.Now() // when another node was last in sight
	for {
		err := m.rejoin(ctx)
		m.forget()
		m.tellDeaf(time.Now())
		switch others := m.others(); {
		case others > 0:
			if alone {
				m.log.Info("gossip reaches others again", "nodes", others)
			}
			pause, alone, company = m.cfg.RejoinEvery, false, time.Now()
		default:
			if err != nil && ctx.Err() == nil && !alone && time.Since(company) >= aloneAfter {
				alone = true
				m.log.Warn("gossip reaches no other node and keeps trying", "err", err)
			}
			pause = min(max(2*pause, firstRejoin), m.cfg.RejoinEvery)
		}
		jitter := 1 + rejoinJitter*(2*rand.Float64()-1)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(float64(pause) * jitter)):
		}
	}
}

// rejoin tries every seed that is not alive and returns one of the errors, nil
// if there was nobody to try.
func (m *Mesh) rejoin(ctx context.Context) error {
	m.mu.Lock()
	known := make(map[string]bool, len(m.members))
	for id, x := range m.members {
		if x.Alive || id == m.cfg.Self {
			known[x.Host] = true
		}
	}
	m.mu.Unlock()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		last error
		sem  = make(chan struct{}, maxJoins)
	)
	for _, seed := range m.cfg.Seeds() {
		select {
		case <-ctx.Done():
		case sem <- struct{}{}:
			wg.Go(func() {
				defer func() { <-sem }()
				if err := m.join(ctx, seed, known); err != nil {
					m.log.Debug("gossip seed not reached", "address", seed, "err", err)
					mu.Lock()
					last = err
					mu.Unlock()
				}
			})
		}
	}
	stop := context.AfterFunc(ctx, m.tr.abort) // memberlist's Join knows no context
	wg.Wait()
	stop()
	return last
}

// join calls one seed, at the first of its addresses that answers.
func (m *Mesh) join(ctx context.Context, seed string, known map[string]bool) error {
	host, port, err := net.SplitHostPort(seed)
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return err
	}
	ips := []netip.Addr{}
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = append(ips, ip)
	} else {
		lookup, cancel := context.WithTimeout(ctx, seedTimeout)
		ips, err = net.DefaultResolver.LookupNetIP(lookup, "ip", host)
		cancel()
		if err != nil {
			return err
		}
	}
	addrs := make([]string, 0, len(ips))
	for _, ip := range ips {
		a := net.JoinHostPort(ip.Unmap().String(), port)
		if known[a] {
			return nil
		}
		addrs = append(addrs, a)
	}
	for _, a := range addrs {
		if _, err = m.list.Join([]string{a}); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if first := errors.Unwrap(err); first != nil {
			err = first // of a list, which takes several lines
		}
	}
	return err
}

// others counts the live nodes besides this one.
func (m *Mesh) others() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for id, x := range m.members {
		if x.Alive && id != m.cfg.Self {
			n++
		}
	}
	return n
}

// forget drops nodes that were lost long ago, so that the list stays as long as
// the mesh is large.
func (m *Mesh) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, x := range m.members {
		if !x.Alive && time.Since(x.Since) > forgetAfter {
			delete(m.members, id)
		}
	}
}

// tellDeaf names the nodes that live by their streams alone: a firewall lets TCP
// through and not UDP. memberlist would say so at every probe.
func (m *Mesh) tellDeaf(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	limit := deafAfter + 3*time.Duration(len(m.members))*probeInterval
	for id, x := range m.members {
		if id == m.cfg.Self || !x.Alive || x.deaf || now.Sub(x.pong) < limit {
			continue
		}
		x.deaf = true
		(*delegate)(m).tell(event{msg: "gossip's packets don't get through to a node: open its gossip port for UDP as well", node: id, site: x.Site, addr: x.Host, warn: true})
	}
}
