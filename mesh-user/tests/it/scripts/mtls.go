// Go's own TLS with a client certificate: `mtls client|server ADDRESS CHAIN KEY ROOT PEER ALPN`. The client says a line
// and prints the answer; the server answers each line with the same. Both believe only PEER, a SPIFFE ID that ROOT has signed.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 7 {
		return errors.New("mtls client|server ADDRESS CHAIN KEY ROOT PEER ALPN")
	}
	role, address := args[0], args[1]
	config, err := settings(args[2:])
	if err != nil {
		return err
	}
	if role == "client" {
		return ask(address, config)
	}
	return answer(address, config)
}

func settings(args []string) (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(args[0], args[1])
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(args[2])
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("no root")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own},
		ClientAuth:   tls.RequireAnyClientCert,
		NextProtos:   []string{args[4]},
		MinVersion:   tls.VersionTLS13,
		// Go would look for a host's name; whom to believe is decided below.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return believe(state.PeerCertificates, roots, args[3])
		},
	}, nil
}

func believe(chain []*x509.Certificate, roots *x509.CertPool, peer string) error {
	intermediates := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		intermediates.AddCert(certificate)
	}
	any := []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	options := x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: any}
	if _, err := chain[0].Verify(options); err != nil {
		return err
	}
	if uris := chain[0].URIs; len(uris) != 1 || uris[0].String() != peer {
		return fmt.Errorf("the peer is %v", uris)
	}
	return nil
}

func ask(address string, config *tls.Config) error {
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err
	}
	defer connection.Close()
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	if _, err := fmt.Fprint(connection, line); err != nil {
		return err
	}
	said, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print(said)
	return nil
}

func answer(address string, config *tls.Config) error {
	listener, err := tls.Listen("tcp", address, config)
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			lines := bufio.NewReader(connection)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				fmt.Fprint(connection, line)
			}
		}()
	}
}
