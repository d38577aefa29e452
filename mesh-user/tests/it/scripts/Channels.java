// The JVM's own sockets: NIO channels with a selector, never blocking. `serve PORT` answers what it reads until the
// client has closed its half, `call HOST PORT` says what it saw as one JSON line.

import java.io.IOException;
import java.net.ConnectException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

public class Channels {
    static final String MARKER = "MARKER-7f3a91c2-readable";
    static final int CLIENTS = 20;
    static final int LINES = 4000;

    public static void main(String[] words) throws IOException {
        if (words[0].equals("serve")) {
            serve(Integer.parseInt(words[1]));
        } else {
            call(words[1], Integer.parseInt(words[2]));
        }
    }

    static void serve(int port) throws IOException {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open().bind(new InetSocketAddress(port));
        listener.configureBlocking(false).register(selector, SelectionKey.OP_ACCEPT);
        System.out.println("listening");
        while (true) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel client = listener.accept();
                    client.configureBlocking(false).register(selector, SelectionKey.OP_READ, ByteBuffer.allocate(8192));
                } else {
                    answer(key);
                }
            }
            selector.selectedKeys().clear();
        }
    }

    /** Reads or writes, whichever is due; closes when the client has, and all is written. */
    static void answer(SelectionKey key) throws IOException {
        SocketChannel client = (SocketChannel) key.channel();
        ByteBuffer buffer = (ByteBuffer) key.attachment();
        if (key.isReadable()) {
            buffer.clear();
            if (client.read(buffer) < 0) {
                client.close();
                return;
            }
            buffer.flip();
        }
        client.write(buffer);
        key.interestOps(buffer.hasRemaining() ? SelectionKey.OP_WRITE : SelectionKey.OP_READ);
    }

    /** One connection of many at a time: what is still to be said, and what has come back. */
    static final class Talk {
        final ByteBuffer said;
        final ByteBuffer heard;

        Talk(byte[] text) {
            said = ByteBuffer.wrap(text);
            heard = ByteBuffer.allocate(text.length + 1);
        }
    }

    static void call(String host, int port) throws IOException {
        byte[] text = (MARKER + "\n").repeat(LINES).getBytes(StandardCharsets.UTF_8);
        Selector selector = Selector.open();
        for (int client = 0; client < CLIENTS; client++) {
            connect(selector, host, port, new Talk(text));
        }
        int back = 0;
        int open = CLIENTS;
        while (open > 0) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                Talk talk = (Talk) key.attachment();
                if (isOver(key, talk)) {
                    open--;
                    byte[] heard = Arrays.copyOf(talk.heard.array(), talk.heard.position());
                    back += Arrays.equals(heard, text) ? 1 : 0;
                    key.channel().close();
                }
            }
            selector.selectedKeys().clear();
        }
        System.out.printf("{\"back\": %d, \"refused\": \"%s\"}%n", back, refused(host, port + 999));
    }

    static void connect(Selector selector, String host, int port, Talk talk) throws IOException {
        SocketChannel channel = SocketChannel.open();
        channel.configureBlocking(false);
        channel.connect(new InetSocketAddress(host, port));
        channel.register(selector, SelectionKey.OP_CONNECT, talk);
    }

    /** Half closes when all is said; over when the server has closed too. */
    static boolean isOver(SelectionKey key, Talk talk) throws IOException {
        SocketChannel channel = (SocketChannel) key.channel();
        if (key.isConnectable()) {
            channel.finishConnect();
            key.interestOps(SelectionKey.OP_READ | SelectionKey.OP_WRITE);
            return false;
        }
        if (key.isWritable()) {
            channel.write(talk.said);
            if (!talk.said.hasRemaining()) {
                channel.shutdownOutput();
                key.interestOps(SelectionKey.OP_READ);
            }
        }
        return key.isReadable() && channel.read(talk.heard) < 0;
    }

    static String refused(String host, int port) throws IOException {
        Selector selector = Selector.open();
        connect(selector, host, port, null);
        selector.select();
        try {
            ((SocketChannel) selector.selectedKeys().iterator().next().channel()).finishConnect();
            return "connected";
        } catch (ConnectException error) {
            return error.getClass().getSimpleName();
        }
    }
}
